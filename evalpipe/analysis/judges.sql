-- name: lengths
-- An empty response has no length to control for: what it loses, it loses by being empty.
CREATE OR REPLACE TEMP TABLE ev_lengths AS
SELECT hash(request_id) AS id,
  any_value(nullif(length(trim(text)), 0)) FILTER (arm = 'treatment')
    - any_value(nullif(length(trim(text)), 0)) FILTER (arm = 'control') AS dl
FROM exchanges
WHERE experiment = $experiment AND role <> 'replay' AND request_id IN (SELECT request_id FROM ev_verdicts)
GROUP BY request_id;

-- name: cost
-- Requests asked, cost, and by how much the worst case of calls without a reported cost exceeds their estimate.
WITH calls AS (
  SELECT request_id, coalesce(usd, cost_usd) AS cost_usd, CASE WHEN usd IS NULL THEN
    json_extract(CASE WHEN json_valid(note) THEN note END, '$.{at_most}')::DOUBLE END AS at_most
  FROM judgments LEFT JOIN judging_settled USING (judgment_id)
  WHERE experiment = $experiment AND judge = $judge AND judge_fingerprint = $fingerprint
)
SELECT count(DISTINCT request_id), sum(cost_usd),
  sum(greatest(at_most - coalesce(cost_usd, 0), 0)) FILTER (at_most IS NOT NULL)
FROM calls;

-- name: label_rows
-- Every label of a request of the experiment. A probability that is none is not known.
CREATE OR REPLACE TEMP TABLE ev_label_rows AS
SELECT source, labeler AS labeller, hash(request_id) AS id, i.u, preference,
  CASE WHEN probability > 0 AND probability <= 1 THEN probability END AS probability
FROM labels l JOIN ev_ids i ON i.id = hash(l.request_id)
WHERE l.experiment = $experiment AND preference IS NOT NULL;
