-- name: users
-- Each answered pair's user, as the analysis counts them, and the mean of its labels: for plans.
WITH labelled AS (
  SELECT request_id, avg(preference) AS y FROM labels WHERE source = $source AND preference IS NOT NULL GROUP BY request_id
)
SELECT request_id, min(coalesce(unit_id, conversation_id, request_id)), any_value(y)
FROM exchanges LEFT JOIN labelled USING (request_id)
WHERE arm = 'control' AND role <> 'replay' GROUP BY request_id;

-- name: correlation
WITH labelled AS (
  SELECT request_id, avg(preference) AS y FROM labels WHERE source = $source AND preference IS NOT NULL GROUP BY request_id
), judged AS (
  SELECT request_id, avg(preference) AS f FROM judgments WHERE judge = $judge AND judge_fingerprint = $fingerprint
    AND preference IS NOT NULL AND list_contains($final::VARCHAR[], status) GROUP BY request_id
)
SELECT corr(y, f), count(*) FROM labelled JOIN judged USING (request_id);
