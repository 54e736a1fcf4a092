-- name: left_by_user
-- Each user's requests, and those of them outside the kinds that are left out.
SELECT u, sum((NOT list_contains({left_out}, kind))::INT)::DOUBLE AS left_n, count(*)::DOUBLE AS n
FROM {source} WHERE {population} GROUP BY u;

-- name: share_left
-- The share of requests outside the kinds that are left out, with what its variance over users needs.
WITH users AS (FROM {users}),
total AS (SELECT sum(left_n) / sum(n) AS share, sum(n) AS n, count(*) AS g FROM users)
SELECT any_value(total.share) AS share, any_value(total.g) AS g,
  sum((left_n - total.share * users.n) * (left_n - total.share * users.n)) / any_value(total.n * total.n) AS squares
FROM users, total;
