-- Answers, each alone: a request of a split log has one, a shadowed request two.
CREATE OR REPLACE TEMP TABLE judging_asked AS
WITH hashed AS (
    SELECT request_id, arm,
        CASE WHEN $by_user THEN md5_number_upper(concat($seed, ':', coalesce(unit_id, request_id))) ELSE 0 END AS user_rank,
        md5_number_upper(concat($seed, ':', request_id)) AS pair_rank,
        sha256(concat(
            coalesce(strlen(prompt), -1), ':', coalesce(strlen(text), -1), ':', coalesce(strlen(tool_calls), -1), ':', outcome, ':',
            prompt, text, tool_calls)) AS content
    FROM exchanges
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
)
SELECT (row_number() OVER (ORDER BY user_rank, pair_rank, request_id, arm) - 1)::UBIGINT AS rank, request_id, arm AS side, content
FROM hashed
;

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
    FROM judging_asked CROSS JOIN (SELECT unnest(range($repeats)) AS repeat) AS repeats
    WHERE rank < $limit AND $orders = 'both'
)
SELECT (row_number() OVER (ORDER BY rank, repeat)) - 1 AS position,
    rank, request_id, content, side, repeat, coalesce(tried.attempt, 0) AS attempt
FROM calls LEFT JOIN judging_tried AS tried USING (key)
WHERE NOT coalesce(tried.final, false)
ORDER BY position
;

CREATE OR REPLACE TEMP TABLE judging_done AS SELECT count(*) AS n FROM judging_tried WHERE final
