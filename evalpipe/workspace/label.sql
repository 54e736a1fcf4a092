-- name: judges
-- Judges that name winners, with the pairs they have verdicts on.
SELECT judge, judge_fingerprint, count(DISTINCT request_id) AS n FROM judgments
WHERE preference IS NOT NULL AND list_contains($final::VARCHAR[], status) GROUP BY ALL
ORDER BY judge, max(judged_at) DESC NULLS LAST, judge_fingerprint;

-- name: answered
-- Pairs that both arms answered and whose texts are there.
CREATE OR REPLACE TEMP TABLE label_answered AS
SELECT request_id FROM exchanges
WHERE role <> 'replay' AND list_contains($answered::VARCHAR[], outcome) AND removed_at IS NULL
  AND coalesce(error_type, '') NOT IN (SELECT unnest($unjudgeable::VARCHAR[]))
GROUP BY request_id HAVING count(DISTINCT arm) = 2;

-- name: candidates
WITH per_order AS (
  SELECT request_id, shown_first, avg(preference) AS p, bool_or(status = 'identical') AS identical FROM judgments
  WHERE judge = $judge AND judge_fingerprint = $fingerprint AND preference IS NOT NULL
    AND list_contains($final::VARCHAR[], status)
  GROUP BY request_id, shown_first
), per_pair AS (
  SELECT request_id, avg(p) AS x, bool_or(identical) AS identical FROM per_order GROUP BY request_id
)
SELECT a.request_id, v.x, coalesce(v.identical, false), epoch_us(min(e.started_at)) AS at_us
FROM label_answered a JOIN exchanges e USING (request_id) LEFT JOIN per_pair v USING (request_id)
WHERE e.arm = 'control' AND e.role <> 'replay' AND ($judge IS NULL OR v.x IS NOT NULL)
GROUP BY ALL ORDER BY a.request_id;

-- name: texts
-- Texts are cut here, so that an answer of megabytes never leaves the database.
SELECT request_id, arm, endpoint, CASE WHEN length(request) <= $request_characters THEN request END AS request,
  left(prompt, $characters) AS prompt, left(text, $characters) AS text, greatest(length(text) - $characters, 0) AS n_cut,
  left(tool_calls, $characters) AS tool_calls, outcome, removed_at IS NOT NULL AS is_removed
FROM exchanges WHERE list_contains($request_ids::VARCHAR[], request_id) AND role <> 'replay' ORDER BY request_id, arm, started_at;
