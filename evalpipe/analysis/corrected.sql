-- name: judged
-- The judged pairs that count in the win rate: the judge's two scores, the mean of the labels (null without one), and how many pairs
-- that count their user has.
WITH labels_of AS (SELECT id, avg(preference) AS y FROM ev_label_rows GROUP BY id)
SELECT v.request_id, v.x, v.s_t, v.s_c, y, count(*) OVER (PARTITION BY v.u) AS of_user
FROM ev_verdicts v JOIN ev_chosen c USING (id) LEFT JOIN labels_of USING (id)
WHERE v.judge = $judge AND v.fingerprint = $fingerprint AND v.complete AND NOT c.later
ORDER BY hash(v.request_id);

-- name: labelled
-- The pairs that count in the win rate, with the mean of their labels, users in an order that has nothing to do with them: labels
-- may all be of the time before they were drawn.
WITH labels_of AS (
  SELECT id, avg(preference) AS y, max(probability) AS p FROM ev_label_rows GROUP BY id
), counted AS (
  SELECT v.u, v.id, v.x, y, p
  FROM ev_verdicts v JOIN ev_chosen c USING (id) LEFT JOIN labels_of USING (id)
  WHERE v.judge = $judge AND v.fingerprint = $fingerprint AND v.complete AND NOT c.later
)
SELECT dense_rank() OVER (ORDER BY hash(u), u) - 1 AS u, u AS unit, x, y, p FROM counted ORDER BY hash(u), counted.u, id;
