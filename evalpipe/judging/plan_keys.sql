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
CREATE OR REPLACE TEMP TABLE judging_tried AS
SELECT any_value(request_id) AS request_id, key, max(attempt) AS attempt,
    bool_or(status IN (SELECT unnest($final::VARCHAR[]))) AS final
FROM judgments WHERE judge_fingerprint = $fingerprint GROUP BY key
UNION ALL
SELECT request_id, key, 0, true FROM judging_pending
;

-- What was asked at any time, whatever is selected now, and when first; `place`: where it stands among the pairs a look has chosen.
CREATE OR REPLACE TEMP TABLE judging_seen AS
SELECT request_id, min(place) AS place, min(asked_at) AS asked_at FROM (
    SELECT request_id, NULL::BIGINT AS place, coalesce(judged_at, TIMESTAMPTZ '-infinity') AS asked_at
    FROM stored_judgments WHERE judge_fingerprint = $fingerprint
    UNION ALL
    SELECT request_id, NULL, TIMESTAMPTZ 'infinity' FROM judging_pending
    UNION ALL
    SELECT request_id, place, NULL FROM judging_chosen
) GROUP BY request_id
