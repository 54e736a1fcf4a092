-- name: kinds
-- Pairs by the roles of their responses.
SELECT c.role || ' + ' || t.role AS kind, count(*) AS n
FROM (FROM exchanges WHERE experiment = $experiment AND arm = 'control' AND role <> 'replay') AS c
JOIN (FROM exchanges WHERE experiment = $experiment AND arm = 'treatment' AND role <> 'replay') AS t USING (request_id)
WHERE c.outcome NOT IN ('client_closed', 'shed') AND t.outcome NOT IN ('client_closed', 'shed')
GROUP BY kind ORDER BY n DESC, kind;

-- name: pairs
-- Requests by why they are no pair.
WITH counted AS (
  SELECT CASE
      WHEN control_attempted AND treatment_attempted THEN 'pair'
      WHEN NOT has_control THEN 'control_missing'
      WHEN NOT control_attempted THEN 'control_' || coalesce(control_lost, 'missing')
      WHEN has_treatment THEN 'treatment_' || coalesce(treatment_lost, 'missing')
      WHEN shadow_status IN ('not_sampled', 'shed', 'not_shadowable') THEN shadow_status
      ELSE 'treatment_missing' END AS why, sum(n)::BIGINT AS n
  FROM ev_outcomes GROUP BY why
), with_reason AS (
  SELECT 'not_shadowable: ' || reason AS why, count(*) AS n FROM ev_ids JOIN ev_reasons USING (id)
  WHERE control_attempted AND NOT has_treatment AND shadow_status = 'not_shadowable' GROUP BY reason
)
SELECT why, sum(n)::BIGINT AS n FROM (
  FROM counted UNION ALL FROM with_reason UNION ALL SELECT 'not_shadowable', -n FROM with_reason
) GROUP BY why HAVING sum(n) > 0 ORDER BY n DESC, why;
