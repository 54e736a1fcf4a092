-- What is left to ask, in the order of the run: `judging_asked` less what `judging_open` found answered.
CREATE OR REPLACE TEMP TABLE judging_plan AS
SELECT (row_number() OVER (ORDER BY rank)) - 1 AS position, request_id, sides,
    coalesce(n_open, bit_count(sides) * $repeats) AS n_calls
FROM judging_asked LEFT JOIN judging_open USING (request_id)
WHERE coalesce(n_open, 1) > 0 ORDER BY position
