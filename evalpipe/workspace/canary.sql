-- name: judged
-- Each unit's mean preference since `since`. A pair judged in one order only measures the seat as much as the responses: with
-- `both_orders` it waits.
WITH judged AS (
  SELECT c.request_id, coalesce(c.unit_id, c.request_id) AS unit, j.shown_first,
    avg(j.preference) AS p, bool_or(j.status = 'identical') AS identical
  FROM judgments j JOIN exchanges c ON c.request_id = j.request_id AND c.arm = 'control'
  WHERE j.judge = $judge AND j.preference IS NOT NULL AND c.started_at >= $since GROUP BY ALL
), pairs AS (
  SELECT unit, avg(p) AS p FROM judged GROUP BY unit, request_id
  HAVING NOT $both_orders OR count(*) = 2 OR bool_or(identical OR shown_first = 'neither')
)
SELECT unit, avg(p) FROM pairs GROUP BY unit ORDER BY unit;
