-- name: kinds
-- Pairs by the roles of their responses.
SELECT c.role || ' + ' || t.role AS kind, count(*) AS n
FROM (FROM exchanges WHERE experiment = $experiment AND arm = 'control' AND role <> 'replay') AS c
JOIN (FROM exchanges WHERE experiment = $experiment AND arm = 'treatment' AND role <> 'replay') AS t USING (request_id)
WHERE c.outcome NOT IN ('client_closed', 'shed') AND t.outcome NOT IN ('client_closed', 'shed')
GROUP BY kind ORDER BY n DESC, kind;

-- name: pairs
-- Requests by why they are no pair.
SELECT CASE
    WHEN control_attempted AND treatment_attempted THEN 'pair'
    WHEN NOT has_control THEN 'control_missing'
    WHEN NOT control_attempted THEN 'control_' || coalesce(control_lost, 'missing')
    WHEN has_treatment THEN 'treatment_' || coalesce(treatment_lost, 'missing')
    WHEN shadow_status IN ('not_sampled', 'shed') THEN shadow_status
    WHEN shadow_status = 'not_shadowable' THEN 'not_shadowable' || coalesce(': ' || reason, '')
    ELSE 'treatment_missing' END AS why, count(*) AS n
FROM ev_ids LEFT JOIN ev_reasons USING (id) GROUP BY ALL ORDER BY n DESC, 1;
