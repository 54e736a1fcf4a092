-- name: units
-- Counts of the units of served requests: `unnamed` are conversations without a user, `single` users with one request, `one`
-- users with several requests of one conversation, `largest` the most requests of a user.
WITH served AS (
  SELECT coalesce(unit_id, conversation_id) AS unit, conversation_id AS talk,
    json_extract_string(meta, '$.unit_source') AS source
  FROM exchanges
  WHERE experiment = $experiment AND role = 'served' AND NOT coalesce(forced, false) AND json_valid(meta) LIMIT $most
), units AS (
  SELECT unit, source = 'conversation' AS unnamed, count(*) AS n, count(DISTINCT talk) AS talks
  FROM served WHERE source IS NOT NULL GROUP BY ALL
)
SELECT coalesce(sum(n), 0) AS n, coalesce(sum(n) FILTER (unnamed), 0) AS unnamed,
  count(*) FILTER (NOT unnamed) AS units, count(*) FILTER (NOT unnamed AND n = 1) AS single,
  count(*) FILTER (NOT unnamed AND n > 1 AND talks = 1) AS one, coalesce(max(n), 0) AS largest
FROM units;
