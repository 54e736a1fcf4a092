-- name: candidates
-- Control's requests; `why`: the reason why one is not replayed.
CREATE OR REPLACE TEMP TABLE replay_candidates AS
WITH control AS (
  SELECT request_id, started_at, coalesce(unit_id, conversation_id, request_id) AS unit, outcome,
    coalesce(request, prompt) IS NOT NULL AS has_request, removed_at IS NOT NULL AS removed,
    coalesce(forced, false) AS forced, contains(coalesce(meta, ''), 'n_request_bytes_dropped') AS is_cut
  FROM exchanges WHERE arm = 'control' AND role IN ('served', 'imported')
  QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY started_at) = 1
), answered AS (
  SELECT DISTINCT request_id FROM exchanges
  WHERE arm = 'treatment' AND role NOT IN ('replay', 'replayed') AND outcome NOT IN ('client_closed', 'shed')
)
SELECT request_id, unit, started_at, CASE
  WHEN forced THEN 'forced'
  WHEN removed THEN 'texts_removed'
  WHEN NOT has_request THEN 'no_request'
  WHEN is_cut THEN 'request_too_large'
  WHEN outcome IN ('client_closed', 'shed') THEN 'control_not_answered'
  WHEN outcome IN ('http_error', 'timeout', 'unreadable') AND NOT $with_control THEN 'control_failed'
  WHEN request_id IN (FROM answered) THEN 'answered_by_treatment'
  WHEN hash(request_id) IN (FROM ev_later) THEN 'later_turn'
  END AS why
FROM control;

-- name: sample
-- Users in an order by a hash of their id and the experiment's seed: a larger sample contains a smaller one.
CREATE OR REPLACE TEMP TABLE replay_sample AS
WITH counted AS (
  SELECT *, row_number() OVER (PARTITION BY unit ORDER BY started_at, request_id) AS nth,
    md5_number_upper(concat($seed, ':', unit)) AS user_hash
  FROM replay_candidates WHERE why IS NULL
)
SELECT *, dense_rank() OVER (ORDER BY user_hash, unit) AS user_rank FROM counted;

-- name: plan
CREATE OR REPLACE TEMP TABLE replay_plan AS
WITH chosen AS (FROM replay_sample WHERE user_rank <= $users AND nth <= $per_user
), known AS (
  SELECT DISTINCT request_id, arm FROM stored_exchanges WHERE role IN ('replay', 'replayed')
), marked AS (
  SELECT request_id, unit, user_rank, nth,
    EXISTS (FROM known WHERE known.request_id = chosen.request_id AND arm = 'treatment') AS has_treatment,
    EXISTS (FROM known WHERE known.request_id = chosen.request_id AND arm = 'control') AS has_control,
    EXISTS (FROM replay_pending AS p WHERE p.request_id = chosen.request_id AND p.arm = 'treatment') AS waits,
    EXISTS (FROM replay_pending AS p WHERE p.request_id = chosen.request_id AND p.arm = 'control') AS waits_control
  FROM chosen
)
SELECT *, NOT has_treatment AND NOT waits AS asks_treatment,
  $with_control AND NOT has_control AND NOT waits_control AS asks_control,
  (row_number() OVER (ORDER BY user_rank, nth)) - 1 AS position
FROM marked;
