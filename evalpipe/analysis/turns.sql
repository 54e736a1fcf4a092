-- name: count_messages
-- Turn and step by the roles of a request's messages (Responses: the types of its items). A Messages-API user message of tool
-- results is the tool's.
CREATE OR REPLACE TEMP TABLE ev_counted AS
WITH talk AS (
  SELECT hash(request_id) AS id, json_extract(request, ['$.messages', '$.input']) AS items
  {served} AND turn IS NULL AND step IS NULL AND json_valid(request)
    -- most have one message: without the assistant's text and a second "user" there is nothing to count
    AND (contains(request, '"assistant"')
      OR regexp_matches(request, '(?s)"user".*"user"|_call"|"role"\s*:\s*"(ai|human|model)"'))
), listed AS (
  SELECT id, list_transform(
    CASE WHEN json_type(items[1]) = 'ARRAY' THEN items[1]::JSON[] WHEN json_type(items[2]) = 'ARRAY' THEN items[2]::JSON[]
      ELSE [] END, lambda item: CASE
        WHEN item ->> '$.role' IN ('assistant', 'ai', 'model') THEN 'assistant'
        WHEN item ->> '$.role' IN ('user', 'human') THEN CASE
          WHEN json_type(item, '$.content') = 'ARRAY' AND json_array_length(item, '$.content') > 0
            AND len(list_filter(item ->> '$.content[*].type', lambda type: type = 'tool_result'))
              = json_array_length(item, '$.content')
          THEN 'tool' ELSE 'user' END
        WHEN item ->> '$.role' IS NOT NULL THEN 'other'
        WHEN coalesce(item ->> '$.type', 'message') = 'message' THEN 'user'
        WHEN ends_with(item ->> '$.type', '_call') THEN 'assistant'
        ELSE 'other' END) AS roles FROM talk
), placed AS (
  SELECT id, roles, len(roles) - list_position(list_reverse(roles), 'user') + 1 AS last_user FROM listed
)
SELECT id, len(list_filter(roles, lambda role: role = 'user')) AS turn,
  len(list_filter(roles[coalesce(last_user, 0) + 1:], lambda role: role = 'assistant')) AS step
FROM placed;

-- name: read_kept_conversations
UPDATE ev_turns SET continues = kept.continues, conv = coalesce(kept.conv, ev_turns.conv)
FROM (
  SELECT id, continues, CASE WHEN name IS NOT NULL THEN hash(name) WHEN continues THEN hash(unit, 'continued') END AS conv
  FROM (
    SELECT id, coalesce(unit_id, '') AS unit, (json ->> '$.previous_response_id') IS NOT NULL AS continues,
      coalesce(json ->> '$.conversation.id', json ->> '$.conversation') AS name
    FROM (
      SELECT hash(request_id) AS id, unit_id, CASE WHEN json_valid(request) THEN request::JSON END AS json
      {served} AND endpoint = 'responses' AND coalesce(turn, 2) > 1
        AND (contains(request, 'previous_response_id') OR contains(request, '"conversation"'))
    )
  )
) AS kept WHERE kept.id = ev_turns.id;

-- name: conversations
-- `begin`: the latest turn that a conversation begins with; of the requests that are compared, those that are no first turn.
SELECT count(*) AS n, count(*) FILTER (has_first) AS with_first, max(turn) AS begin,
  coalesce(sum(n_compared), 0)::BIGINT AS n_compared, coalesce(sum(n_later), 0)::BIGINT AS n_later
FROM (
  SELECT NOT bool_and(later) AS has_first, min(CASE WHEN step = 0 AND NOT continues THEN coalesce(turn, 1) END) AS turn,
    count(CASE WHEN compared THEN 1 END) AS n_compared, count(CASE WHEN compared AND later THEN 1 END) AS n_later
  FROM (SELECT *, coalesce({later}, false) AS later FROM ev_turns) GROUP BY conv
);

-- name: sample_conversations
-- Of a long log the first, the middle and the last conversations, `sampled` in all.
CREATE OR REPLACE TEMP TABLE ev_begun AS
SELECT *, CASE WHEN k <= $sampled // 3 OR n <= $sampled THEN 1 WHEN k > n - $sampled // 3 THEN 3 ELSE 2 END AS part
FROM (
  SELECT *, row_number() OVER (ORDER BY at_us, id) AS k, count(*) OVER () AS n FROM (
    SELECT min(coalesce(turn, 1)) AS turn, arg_min(id, at_us) AS id, min(at_us) AS at_us FROM ev_turns
    WHERE step = 0 AND NOT continues GROUP BY conv
  )
) WHERE n <= $sampled OR k <= $sampled // 3 OR k > n - $sampled // 3
  OR k BETWEEN (n - $sampled // 3) // 2 AND (n + $sampled // 3) // 2;

-- name: constant_heads
-- The smallest number of user messages that a noticeable share of a system text's conversations begin with.
WITH counted AS (
  SELECT CASE WHEN count(*) OVER (PARTITION BY system) < $least_conversations THEN $shared ELSE system END AS system, turn
  FROM ev_begun JOIN ev_systems USING (id)
), shares AS (
  SELECT system, turn, count(*) / sum(count(*)) OVER (PARTITION BY system) AS share FROM counted GROUP BY system, turn
)
SELECT system, min(turn) AS head FROM shares WHERE share >= $least_share GROUP BY system ORDER BY system;

-- name: take_back_heads
DELETE FROM ev_later WHERE id IN (
  SELECT turns.id FROM ev_turns AS turns JOIN (SELECT id, {system_text} AS system FROM ({read})) AS texts
    ON turns.id = texts.id AND turns.step = 0 AND turns.turn > 1 AND NOT turns.continues
  LEFT JOIN ev_heads AS own ON own.system = texts.system
  WHERE turns.turn = coalesce(own.head, (SELECT head FROM ev_heads WHERE system = $shared))
);

-- name: add_continued
INSERT INTO ev_later
SELECT id FROM (
  SELECT alike.id, prompt, first_value(prompt) OVER (PARTITION BY conv ORDER BY at_us, alike.id) AS first_prompt
  FROM ev_alike AS alike JOIN (SELECT hash(request_id) AS id, hash(prompt) AS prompt {served}) AS texts USING (id)
) WHERE prompt <> first_prompt AND id NOT IN (SELECT id FROM ev_later);
