SELECT
    sha256(concat(page.request_id, ':', page.content, ':', $fingerprint, ':', page.side, ':', page.repeat)) AS key,
    page.attempt, page.request_id, page.side, page.repeat, answer.prompt, answer.text, answer.tool_calls, answer.outcome
FROM (FROM judging_plan WHERE position >= $start AND position < $end) AS page
JOIN exchanges AS answer ON answer.request_id = page.request_id AND answer.arm = page.side AND answer.role <> 'replay'
ORDER BY page.position
