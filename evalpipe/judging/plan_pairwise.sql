-- The pairs both arms answered, in the order of the run. `sides`: 1 = control shown first, 2 = treatment, 3 = both orders.
-- Texts are not read here: a plan of a million pairs needs ids only.
CREATE OR REPLACE TEMP TABLE judging_asked AS
WITH answered AS (
    SELECT request_id, arm, coalesce(unit_id, conversation_id, request_id) AS unit FROM exchanges
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
), ranked AS (
    SELECT control.request_id,
        CASE WHEN $by_user THEN md5_number_upper(concat($seed, ':', control.unit)) ELSE 0 END AS user_rank,
        md5_number(concat($seed, ':', control.request_id)) AS pair_rank
    FROM (FROM answered WHERE arm = 'control') AS control
    SEMI JOIN (FROM answered WHERE arm = 'treatment') AS treatment USING (request_id)
), numbered AS (
    SELECT (row_number() OVER (ORDER BY user_rank, pair_rank)) - 1 AS rank, request_id,
        CASE WHEN pair_rank % 2 = 1 THEN 2 ELSE 1 END AS coin,
        (pair_rank // 2) % 10000 < $calibration_share * 10000 AS calibrates
    FROM ranked
)
SELECT rank, request_id,
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
SELECT request_id, count(*) FILTER (WHERE NOT coalesce(tried.final, false)) AS n_open
FROM calls LEFT JOIN judging_tried AS tried USING (key, request_id) GROUP BY request_id
