-- name: share_left
-- The share of requests outside the kinds that are left out, with what its variance over users needs.
WITH users AS (
  SELECT sum((NOT list_contains($left_out, kind))::INT)::DOUBLE AS left_n, count(*)::DOUBLE AS n
  FROM {source} WHERE {population} GROUP BY u
), total AS (SELECT sum(left_n) / sum(n) AS share, sum(n) AS n, count(*) AS g FROM users)
SELECT any_value(total.share) AS share, any_value(total.g) AS g,
  sum((left_n - total.share * users.n) * (left_n - total.share * users.n)) / any_value(total.n * total.n) AS squares
FROM users, total;
