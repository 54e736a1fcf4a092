-- The pairs that count in a user's own mean, first turns and later turns apart: those that a look has chosen, then those asked before,
-- then the next, each by arrival. Rows beyond the selection are there only to be counted. Texts are not read: a plan of a million
-- pairs needs ids only.
CREATE OR REPLACE TEMP TABLE judging_capped AS
WITH answered AS (
    SELECT request_id, arm, started_at, coalesce(unit_id, conversation_id, request_id) AS unit FROM exchanges
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
), selected AS (
    SELECT request_id, unit, started_at FROM (FROM answered WHERE arm = 'control')
    SEMI JOIN (FROM answered WHERE arm = 'treatment') USING (request_id)
    ANTI JOIN judging_unjudgeable USING (request_id)
), pairs AS (
    SELECT request_id, unit, started_at, true AS is_selected FROM selected
    UNION ALL
    SELECT request_id, coalesce(unit_id, conversation_id, request_id), started_at, false
    FROM stored_exchanges SEMI JOIN judging_seen USING (request_id) ANTI JOIN selected USING (request_id)
    WHERE role <> 'replay' AND arm = 'control'
), marked AS (
    SELECT pairs.*, hash(unit) AS u, later.id IS NOT NULL AS is_later, seen.place, seen.asked_at,
        seen.request_id IS NOT NULL AS is_seen
    FROM pairs LEFT JOIN judging_seen AS seen USING (request_id)
    LEFT JOIN ev_later AS later ON later.id = hash(pairs.request_id)
    WHERE NOT EXISTS (FROM judging_excluded WHERE pairs.started_at >= since AND pairs.started_at < "until")
)
SELECT request_id, unit, u, is_selected, is_later, asked_at,
    row_number() OVER by_arrival AS nth,
    count(CASE WHEN is_selected THEN 1 END) OVER (PARTITION BY u, is_later) AS n_of_user
FROM marked
WINDOW by_arrival AS (PARTITION BY u, is_later ORDER BY place NULLS LAST, is_seen DESC, started_at, request_id)
QUALIFY nth <= $per_user
;

-- The order of the run: users that were asked before in front, in the order they were first asked; new ones by a hash of the seed.
-- A user's pairs are adjacent. Later turns come in between, so that every beginning of the list has its share of them.
-- `sides`: 1 = control shown first, 2 = treatment, 3 = both orders.
CREATE OR REPLACE TEMP TABLE judging_asked AS
WITH users AS (
    SELECT *, min(asked_at) OVER (PARTITION BY u, is_later) AS first_asked,
        md5_number_upper(concat($seed, ':', unit)) AS user_rank
    FROM judging_capped
), ordered AS (
    SELECT request_id, u, is_later,
        row_number() OVER (PARTITION BY is_later ORDER BY first_asked NULLS LAST, user_rank, u, nth) AS n
    FROM users WHERE is_selected
), ranked AS (
    SELECT request_id, u, is_later, md5_number(concat($seed, ':', request_id)) AS pair_rank,
        (row_number() OVER (
            ORDER BY CASE WHEN is_later THEN (n - 0.5) / $later_share ELSE (n - 0.5) / (1 - $later_share) END, is_later, n
        )) - 1 AS rank
    FROM ordered
    WHERE NOT is_later OR ($later_share > 0 AND n <= floor(
        (SELECT count(*) FROM ordered WHERE NOT is_later) * $later_share / (1 - $later_share) + 1e-9))
), numbered AS (
    SELECT rank, request_id, u, is_later,
        CASE WHEN pair_rank % 2 = 1 THEN 2 ELSE 1 END AS coin,
        (pair_rank // 2) % 10000 < $calibration_share * 10000 AS calibrates
    FROM ranked
)
SELECT rank, request_id, u, is_later,
    (CASE WHEN $orders = 'both' OR ($orders = 'calibrated' AND (calibrates OR rank < $calibration_pairs)) THEN 3 ELSE coin END)::UTINYINT
        AS sides
FROM numbered WHERE rank < $limit ORDER BY rank
;

-- Only where something was asked are the texts read and hashed: a changed answer is another question.
CREATE OR REPLACE TEMP TABLE judging_open AS
WITH asked AS (
    FROM judging_asked SEMI JOIN judging_tried USING (request_id)
), hashed AS (
    SELECT request_id, arm,
        judging_content(prompt, text, tool_calls, outcome, CASE WHEN arm = 'control' THEN prompt END) AS content
    FROM exchanges
    WHERE role <> 'replay' AND request_id IN (SELECT request_id FROM asked)
), calls AS (
    SELECT request_id,
        judging_key(request_id, concat(control.content, ':', treatment.content), $fingerprint, sides.side, repeat) AS key
    FROM asked
    JOIN hashed AS control USING (request_id) JOIN hashed AS treatment USING (request_id)
    JOIN (VALUES ('control', 1), ('treatment', 2)) AS sides(side, bit) ON asked.sides & sides.bit <> 0
    CROSS JOIN (SELECT unnest(range($repeats)) AS repeat) AS repeats
    WHERE control.arm = 'control' AND treatment.arm = 'treatment'
)
SELECT request_id, count(*) FILTER (WHERE NOT coalesce(tried.final OR tried.given_up, false)) AS n_open
FROM calls LEFT JOIN judging_tried AS tried USING (key, request_id) GROUP BY request_id
