-- name: planned_pairs
-- The pairs of a plan in its order, a user's adjacent, with the preferences that are known of each order.
WITH known AS (
  SELECT request_id, list(preference) FILTER (shown_first = 'control') AS control_first,
    list(preference) FILTER (shown_first = 'treatment') AS treatment_first
  FROM stored_judgments
  WHERE judge_fingerprint = $fingerprint AND preference IS NOT NULL AND list_contains($final::VARCHAR[], status)
  GROUP BY request_id
)
SELECT request_id, capped.u, coalesce(plan.n_calls, 0), known.control_first, known.treatment_first
FROM judging_capped AS capped
LEFT JOIN judging_asked AS asked USING (request_id)
LEFT JOIN judging_plan AS plan USING (request_id)
LEFT JOIN known USING (request_id)
WHERE NOT capped.is_later AND (asked.rank IS NOT NULL OR known.request_id IS NOT NULL)
ORDER BY min(asked.rank) OVER (PARTITION BY capped.u) NULLS FIRST, capped.u, asked.rank NULLS FIRST, request_id;
