-- Pairs both arms answered, with one hash over everything a judge would read. The texts themselves go no further.
CREATE OR REPLACE TEMP TABLE judging_asked AS
WITH hashed AS (
    SELECT request_id, arm, unit_id,
        sha256(concat(
            coalesce(strlen(prompt), -1), ':', coalesce(strlen(text), -1), ':', coalesce(strlen(tool_calls), -1), ':', outcome, ':',
            CASE WHEN arm = 'control' THEN prompt END, text, tool_calls)) AS content
    FROM exchanges
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
), ranked AS (
    SELECT control.request_id,
        CASE WHEN $by_user THEN md5_number_upper(concat($seed, ':', coalesce(control.unit_id, control.request_id))) ELSE 0 END AS user_rank,
        md5_number_upper(concat($seed, ':', control.request_id)) AS pair_rank,
        concat(control.content, treatment.content) AS content
    FROM hashed AS control JOIN hashed AS treatment USING (request_id)
    WHERE control.arm = 'control' AND treatment.arm = 'treatment'
)
SELECT (row_number() OVER (ORDER BY user_rank, pair_rank, request_id) - 1)::UBIGINT AS rank, request_id, content
FROM ranked
;

-- What was asked before, by key: the anti-join's other side.
CREATE OR REPLACE TEMP TABLE judging_tried AS
SELECT key, max(attempt) AS attempt, bool_or(status IN (SELECT unnest($final::VARCHAR[]))) AS final
FROM judgments WHERE judge_fingerprint = $fingerprint GROUP BY key
UNION ALL
SELECT key, 0, true FROM judging_pending
;

CREATE OR REPLACE TEMP TABLE judging_plan AS
WITH calls AS (
    SELECT rank, request_id, content, side, repeat,
        sha256(concat(request_id, ':', content, ':', $fingerprint, ':', side, ':', repeat)) AS key
    FROM judging_asked
    CROSS JOIN (VALUES ('control'), ('treatment')) AS sides(side)
    CROSS JOIN (SELECT unnest(range($repeats)) AS repeat) AS repeats
    WHERE rank < $limit AND (
        $orders = 'both'
        OR ($orders = 'calibrated' AND (rank < $calibration_pairs
            OR md5_number_lower(concat($seed, ':both:', request_id)) / 18446744073709551616.0 < $calibration_share))
        OR (side = 'treatment') = (md5_number_lower(concat($seed, ':coin:', request_id)) % 2 = 1))
)
SELECT (row_number() OVER (ORDER BY rank, repeat, side)) - 1 AS position,
    rank, request_id, content, side, repeat, coalesce(tried.attempt, 0) AS attempt
FROM calls LEFT JOIN judging_tried AS tried USING (key)
WHERE NOT coalesce(tried.final, false)
ORDER BY position
;

CREATE OR REPLACE TEMP TABLE judging_done AS SELECT count(*) AS n FROM judging_tried WHERE final
