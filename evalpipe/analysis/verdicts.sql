-- name: calls
-- The calls of an experiment, each description once: its final row, else its last. Attempts whose stored reply was read again
-- are left out. A pair of which each response was judged alone has two rows of one description, distinguished by the key.
CREATE OR REPLACE TEMP TABLE ev_calls AS
SELECT judge, judge_fingerprint AS fingerprint, hash(request_id) AS id, request_id, shown_first, repeat, status,
  winner, preference, control_scores, treatment_scores, judge_model, simulated, cost_usd,
  epoch_us(judged_at) AS judged_us, list_contains($final::VARCHAR[], status) AS final
FROM judgments ANTI JOIN ({superseded}) AS superseded USING (experiment, key, attempt) WHERE experiment = $experiment
QUALIFY row_number() OVER (
  PARTITION BY judge, judge_fingerprint, request_id, shown_first, repeat,
    CASE WHEN shown_first = 'neither' AND winner IS NULL AND preference IS NULL THEN key END
  ORDER BY list_contains($final::VARCHAR[], status) DESC, judged_at DESC NULLS LAST, attempt DESC) = 1;

-- name: verdicts
-- `x`: the preference for the treatment, the mean of both orders. Judges in `relaxed` need one order only.
CREATE OR REPLACE TEMP TABLE ev_verdicts AS
WITH per_order AS (
  SELECT judge, fingerprint, id, any_value(request_id) AS request_id, shown_first,
    avg(preference) FILTER (final) AS p, bool_or(final AND status = 'identical') AS identical,
    count(*) FILTER (NOT final) AS n_failed
  FROM ev_calls GROUP BY judge, fingerprint, id, shown_first
), per_pair AS (
  SELECT judge, fingerprint, id, any_value(request_id) AS request_id, avg(p) AS x,
    max(p) FILTER (shown_first = 'treatment') AS s_t, max(p) FILTER (shown_first = 'control') AS s_c,
    bool_or(identical) AS identical, sum(n_failed) AS n_failed
  FROM per_order GROUP BY judge, fingerprint, id
)
SELECT v.* EXCLUDE (x), i.u, i.at_us, v.x,
  v.x IS NOT NULL AND (list_contains($relaxed::VARCHAR[], v.fingerprint) OR v.identical
    OR (v.s_t IS NOT NULL AND v.s_c IS NOT NULL)) AS complete
FROM per_pair v JOIN ev_ids i USING (id);

-- name: scores
CREATE OR REPLACE TEMP TABLE ev_scores AS
WITH entries AS (
  SELECT judge, fingerprint, id, false AS treatment, unnest(map_entries(control_scores), recursive := true)
  FROM ev_calls WHERE final
  UNION ALL
  SELECT judge, fingerprint, id, true AS treatment, unnest(map_entries(treatment_scores), recursive := true)
  FROM ev_calls WHERE final
), means AS (
  SELECT judge, fingerprint, id, key AS dimension, avg(value) FILTER (NOT treatment) AS control,
    avg(value) FILTER (treatment) AS treatment
  FROM entries WHERE value IS NOT NULL GROUP BY ALL
)
SELECT m.*, i.u FROM means m JOIN ev_ids i USING (id);

-- name: judges
SELECT judge, fingerprint, max(judge_model) AS model, bool_or(simulated) AS simulated,
  bool_or(preference IS NOT NULL OR winner IS NOT NULL OR shown_first IN ('control', 'treatment')) AS pairwise,
  count(DISTINCT id) FILTER (final) AS n_pairs
FROM ev_calls GROUP BY judge, fingerprint
ORDER BY judge, max(judged_us) DESC NULLS LAST, n_pairs DESC, fingerprint;

-- name: ratings
-- The end users' ratings, the last one of each response.
INSERT INTO {table}
SELECT 'user_rating', {group}, v.u, coalesce(sum(rating) FILTER (treatment), 0), count(*) FILTER (treatment),
  coalesce(sum(rating) FILTER (NOT treatment), 0), count(*) FILTER (NOT treatment)
FROM (
  SELECT hash(request_id) AS id, arm = 'treatment' AS treatment, arg_max(rating, "at") AS rating
  FROM feedback WHERE arm IS NOT NULL GROUP BY request_id, arm
) f JOIN ev_ids v USING (id) {join} GROUP BY ALL;

-- name: places
-- The pairs of a judge with their place among their user's: recorded choices first, then by arrival.
CREATE OR REPLACE TEMP TABLE ev_places AS
SELECT v.id, v.u, v.request_id, (NOT $all_turns AND l.id IS NOT NULL) AS later, v.complete, r.position, v.at_us,
  row_number() OVER (
    PARTITION BY v.u, (NOT $all_turns AND l.id IS NOT NULL) ORDER BY r.position NULLS LAST, v.at_us, v.request_id
  ) AS place
FROM ev_verdicts v LEFT JOIN ev_later l USING (id) LEFT JOIN ev_recorded r USING (request_id)
WHERE v.judge = $judge AND v.fingerprint = $fingerprint;
