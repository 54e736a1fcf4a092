-- name: unsettled
-- Calls without a reported cost: the estimate and the worst case they were booked at; the input tokens that another attempt of
-- the same key reported.
WITH calls AS (
  SELECT judgment_id, key, judge_fingerprint, attempt, cost_usd, input_tokens, CASE WHEN json_valid(note) THEN note END AS note
  FROM stored_judgments WHERE judge = $judge
), asked_again AS (SELECT key, max(input_tokens) AS input_tokens FROM calls GROUP BY key)
SELECT calls.judgment_id, calls.judge_fingerprint, coalesce(calls.cost_usd, 0),
  json_extract(note, '$.{at_most}')::DOUBLE,
  CASE WHEN json_extract(note, '$.repair') IS NULL THEN asked_again.input_tokens END
FROM calls JOIN asked_again USING (key) WHERE json_extract(note, '$.{at_most}') IS NOT NULL;

-- name: unpriced
-- Calls without a reported cost whose model had no price then: the most tokens that they can have used.
WITH calls AS (
  SELECT judgment_id, judged_at, CASE WHEN json_valid(note) THEN note END AS note FROM stored_judgments
  WHERE judge = $judge AND cost_usd IS NULL AND (input_tokens IS NULL OR output_tokens IS NULL)
)
SELECT judgment_id, json_extract(note, '$.{tokens}[0]')::BIGINT, json_extract(note, '$.{tokens}[1]')::BIGINT
FROM calls WHERE json_extract(note, '$.{tokens}') IS NOT NULL
  AND ($since::TIMESTAMPTZ IS NULL OR judged_at >= $since::TIMESTAMPTZ);
