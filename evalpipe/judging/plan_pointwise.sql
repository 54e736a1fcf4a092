-- What a judge of facts cannot check: there is nothing to check it against (`judging_facts` is empty for any other judge).
INSERT INTO judging_unjudgeable
SELECT request_id, arm, any_value(lacks) FROM judging_facts ANTI JOIN judging_unjudgeable USING (request_id, arm)
WHERE lacks IS NOT NULL GROUP BY request_id, arm
;

-- Answers, each alone: a request of a split log has one, a shadowed request two. `sides`: 1 = control's, 2 = treatment's answer.
CREATE OR REPLACE TEMP TABLE judging_asked AS
WITH ranked AS (
    SELECT request_id, sum(DISTINCT CASE WHEN arm = 'control' THEN 1 ELSE 2 END)::UTINYINT AS sides,
        md5_number(concat($seed, ':', request_id)) AS pair_rank
    FROM exchanges ANTI JOIN judging_unjudgeable USING (request_id, arm)
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
    GROUP BY request_id
)
SELECT (row_number() OVER (ORDER BY pair_rank)) - 1 AS rank, request_id, sides
FROM ranked QUALIFY rank < $limit ORDER BY rank
;

-- Only where something was asked are the texts read and hashed: a changed answer is another question.
CREATE OR REPLACE TEMP TABLE judging_open AS
WITH asked AS (
    FROM judging_asked SEMI JOIN judging_tried USING (request_id)
), calls AS (
    SELECT request_id,
        judging_key(request_id, concat(judging_content(prompt, text, tool_calls, outcome, prompt), mark), $fingerprint, arm, repeat)
            AS key
    FROM (
        FROM exchanges ANTI JOIN judging_unjudgeable USING (request_id, arm)
        LEFT JOIN judging_facts USING (request_id, arm)
    ) AS exchanges CROSS JOIN (SELECT unnest(range($repeats)) AS repeat) AS repeats
    WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[]))
        AND request_id IN (SELECT request_id FROM asked)
)
SELECT request_id, count(*) FILTER (WHERE NOT coalesce(tried.final OR tried.given_up, false)) AS n_open
FROM calls LEFT JOIN judging_tried AS tried USING (key, request_id) GROUP BY request_id
