-- Replayed responses that belong to a pair, and the view in which they replace the missing response.
-- The treatment's own response (a shadow's, an import's) goes before a replayed one. Where control was replayed too, pairs are of
-- one run: a replayed response whose partner is not there waits for it.

-- name: places
CREATE TABLE replay_places AS
WITH replays AS (
  SELECT DISTINCT experiment, request_id, arm FROM stored_exchanges WHERE role = 'replay'
), logged AS (
  SELECT experiment, request_id, bool_or(arm = 'treatment' AND outcome NOT IN ('client_closed', 'shed')) AS answered,
    min(started_at) FILTER (arm = 'control') AS asked_at
  FROM stored_exchanges SEMI JOIN replays USING (experiment, request_id) WHERE role <> 'replay' GROUP BY ALL
), twice AS (
  SELECT DISTINCT experiment FROM replays WHERE arm = 'control'
), treatment AS (
  SELECT r.experiment, r.request_id, logged.asked_at FROM replays AS r LEFT JOIN logged USING (experiment, request_id)
  WHERE r.arm = 'treatment' AND NOT coalesce(logged.answered, false) AND (
    r.experiment NOT IN (FROM twice)
    OR EXISTS (FROM replays AS c WHERE c.experiment = r.experiment AND c.request_id = r.request_id AND c.arm = 'control'))
)
SELECT experiment, request_id, 'treatment' AS arm, asked_at FROM treatment
UNION ALL
SELECT experiment, request_id, 'control', asked_at FROM treatment WHERE experiment IN (FROM twice);

-- name: compared
-- A replayed response counts at the instant of the request it answers.
CREATE VIEW compared_exchanges AS
SELECT e.* REPLACE ('replayed' AS role, coalesce(p.asked_at, e.started_at) AS started_at)
FROM (FROM {source}) AS e JOIN replay_places AS p USING (experiment, request_id, arm) WHERE e.role = 'replay'
UNION ALL
SELECT e.* FROM (FROM {source}) AS e ANTI JOIN replay_places AS p USING (experiment, request_id, arm) WHERE e.role <> 'replay';
