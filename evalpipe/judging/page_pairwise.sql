SELECT
    sha256(concat(page.request_id, ':', page.content, ':', $fingerprint, ':', page.side, ':', page.repeat)) AS key,
    page.attempt, page.request_id, page.side, page.repeat, control.prompt,
    control.text, control.tool_calls, control.outcome, treatment.text, treatment.tool_calls, treatment.outcome
FROM (FROM judging_plan WHERE position >= $start AND position < $end) AS page
JOIN exchanges AS control ON control.request_id = page.request_id AND control.arm = 'control' AND control.role <> 'replay'
JOIN exchanges AS treatment ON treatment.request_id = page.request_id AND treatment.arm = 'treatment' AND treatment.role <> 'replay'
ORDER BY page.position
