-- What both kinds of plan share. The arithmetic of keys is `plan.judgment_key`'s: SHA-256 over the request, its answers'
-- texts, the judge, the order (or the arm) and the repeat.
CREATE OR REPLACE TEMP MACRO judging_content(prompt, answer, tool_calls, outcome, shown_prompt) AS sha256(concat(
    coalesce(strlen(prompt), -1), ':', coalesce(strlen(answer), -1), ':', coalesce(strlen(tool_calls), -1), ':', outcome, ':',
    shown_prompt, answer, tool_calls))
;

CREATE OR REPLACE TEMP MACRO judging_key(request_id, content, fingerprint, side, repeat) AS
    sha256(concat(request_id, ':', content, ':', fingerprint, ':', side, ':', repeat))
;

-- What was asked before, by key: the anti-join's other side.
-- `n_unread`: answers to it that held no verdict; after so many it is given up. An attempt whose stored reply was read again counts as
-- it reads now, and reading again is no attempt.
CREATE OR REPLACE TEMP TABLE judging_tried AS
WITH made AS (
    SELECT request_id, key, attempt, status,
        CASE WHEN NOT coalesce(contains(note, 'reparsed_attempt'), false) OR NOT json_valid(note) THEN NULL
            ELSE (note->>'$.reparsed_attempt')::BIGINT END AS reads
    FROM judgments WHERE judge_fingerprint = $fingerprint
), counted AS (
    SELECT made.key, any_value(request_id) AS request_id, max(attempt) AS attempt,
        count(*) FILTER (made.reads IS NULL AND status IN (SELECT unnest($unread::VARCHAR[]))) AS n_unread,
        bool_or(status IN (SELECT unnest($final::VARCHAR[])) AND superseded.key IS NULL) AS final
    FROM made LEFT JOIN (SELECT DISTINCT key, reads FROM made WHERE reads IS NOT NULL) AS superseded
        ON made.key = superseded.key AND made.attempt = superseded.reads
    GROUP BY made.key
)
SELECT request_id, key, attempt, n_unread, final, NOT final AND n_unread >= $max_attempts AS given_up FROM counted
UNION ALL
SELECT request_id, key, 0, 0, true, false FROM judging_pending
;

-- What was asked at any time, whatever is selected now, and when first; `place`: its rank among the pairs a look has chosen.
CREATE OR REPLACE TEMP TABLE judging_seen AS
SELECT request_id, min(place) AS place, min(asked_at) AS asked_at FROM (
    SELECT request_id, NULL::BIGINT AS place, coalesce(judged_at, TIMESTAMPTZ '-infinity') AS asked_at
    FROM stored_judgments WHERE judge_fingerprint = $fingerprint
    UNION ALL
    SELECT request_id, NULL, TIMESTAMPTZ 'infinity' FROM judging_pending
    UNION ALL
    SELECT request_id, place, NULL FROM judging_chosen
) GROUP BY request_id
;

-- Answers that hold no text to judge, by the mark their reader set: pictures or sound, a paused turn, a call that is not there.
CREATE OR REPLACE TEMP TABLE judging_unjudgeable AS
SELECT request_id, arm, any_value(error_type) AS kind FROM exchanges
WHERE role <> 'replay' AND outcome IN (SELECT unnest($answered::VARCHAR[])) AND error_type IN (SELECT unnest($unjudgeable::VARCHAR[]))
GROUP BY request_id, arm
