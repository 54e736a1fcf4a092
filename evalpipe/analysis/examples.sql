-- name: choose
CREATE OR REPLACE TEMP TABLE ev_examples AS
SELECT id, kind, x FROM (
  SELECT i.id, v.x, CASE
      WHEN control_failed OR treatment_failed THEN 'arm_failed'
      WHEN v.x IS NULL THEN 'unjudged'
      WHEN v.s_t IS NOT NULL AND v.s_c IS NOT NULL AND (v.s_t - 0.5) * (v.s_c - 0.5) < 0 THEN 'judge_contradicted'
      WHEN v.x > 0.5 THEN 'treatment_won' WHEN v.x < 0.5 THEN 'treatment_lost' ELSE 'tie' END AS kind
  FROM ev_ids i
  LEFT JOIN (SELECT * FROM ev_verdicts WHERE judge = $judge AND fingerprint = $fingerprint) v USING (id)
  WHERE control_attempted AND treatment_attempted AND i.at_us >= $since_us
) QUALIFY row_number() OVER (PARTITION BY kind ORDER BY hash(id)) <= $n;

-- name: read
-- Texts are cut here, so that a response of megabytes never leaves the database.
SELECT e.kind, e.x, x.request_id, x.arm, x.unit_id, epoch_us(x.started_at) AS at_us, x.endpoint, x.outcome,
  coalesce(x.error_message, x.error_type) AS error, x.finish_reason, left(x.tool_calls, $characters) AS tool_calls,
  x.model, x.latency_ms, x.cost_usd, x.output_tokens, greatest(length(x.text) - $characters, 0) AS n_cut,
  CASE WHEN length(x.text) > $characters THEN left(x.text, $characters // 2) || chr(10) || '[…]' || chr(10)
    || right(x.text, $characters // 2) ELSE x.text END AS text,
  CASE WHEN length(x.request) <= $request_characters THEN x.request END AS request, left(x.prompt, $characters) AS prompt
FROM exchanges x JOIN ev_examples e ON hash(x.request_id) = e.id
WHERE x.experiment = $experiment AND x.role <> 'replay' AND x.started_at >= $since
ORDER BY e.kind, hash(e.id), x.request_id, x.arm;
