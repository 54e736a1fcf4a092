-- Answers, each alone: a request of a split log has one, a shadowed request two. `sides`: 1 = control's, 2 = treatment's answer.
CREATE OR REPLACE TEMP TABLE judging_asked AS
WITH ranked AS (
    SELECT request_id, sum(DISTINCT CASE WHEN arm = 'control' THEN 1 ELSE 2 END)::UTINYINT AS sides,
        CASE WHEN $by_user THEN md5_number_upper(concat($seed, ':', coalesce(any_value(unit_id), request_id))) ELSE 0 END
            AS user_rank,
        md5_number(concat($seed, ':', request_id)) AS pair_rank
    FROM exchanges
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
    GROUP BY request_id
)
SELECT (row_number() OVER (ORDER BY user_rank, pair_rank)) - 1 AS rank, request_id, sides
FROM ranked QUALIFY rank < $limit ORDER BY rank
;

-- What was asked before, by key: the anti-join's other side.
CREATE OR REPLACE TEMP TABLE judging_tried AS
SELECT any_value(request_id) AS request_id, key, max(attempt) AS attempt,
    bool_or(status IN (SELECT unnest($final::VARCHAR[]))) AS final
FROM judgments WHERE judge_fingerprint = $fingerprint GROUP BY key
UNION ALL
SELECT request_id, key, 0, true FROM judging_pending
;

CREATE OR REPLACE TEMP TABLE judging_open AS
WITH asked AS (
    FROM judging_asked SEMI JOIN judging_tried USING (request_id)
), calls AS (
    SELECT request_id, sha256(concat(
        request_id, ':', sha256(concat(
            coalesce(strlen(prompt), -1), ':', coalesce(strlen(text), -1), ':', coalesce(strlen(tool_calls), -1), ':', outcome, ':',
            prompt, text, tool_calls)),
        ':', $fingerprint, ':', arm, ':', repeat)) AS key
    FROM exchanges CROSS JOIN (SELECT unnest(range($repeats)) AS repeat) AS repeats
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
        AND request_id IN (SELECT request_id FROM asked)
)
SELECT request_id, count(*) FILTER (WHERE NOT coalesce(tried.final, false)) AS n_open
FROM calls LEFT JOIN judging_tried AS tried USING (key, request_id) GROUP BY request_id
;

CREATE OR REPLACE TEMP TABLE judging_plan AS
SELECT (row_number() OVER (ORDER BY rank)) - 1 AS position, request_id, sides,
    coalesce(n_open, bit_count(sides) * $repeats) AS n_calls
FROM judging_asked LEFT JOIN judging_open USING (request_id)
WHERE coalesce(n_open, 1) > 0 ORDER BY position
