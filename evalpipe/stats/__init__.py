"""The statistics, pure and small: aggregates (or arrays) and counts in, `Estimate`s or small frozen dataclasses out.

Every difference is treatment − control. How one looks is one object, passed as `multiplier=`:
`multiplier.Fixed()` (default), `multiplier.Anytime(n_star=…)`, `group_sequential.Scheduled(fractions=…)`. Levels: call again with
`alpha/S` (goals), `alpha` (guardrails), `alpha/K` (harm). All numbers of an `Estimate` are finite or None.

| question | aggregates from SQL | function |
|---|---|---|
| mean, ratio, cost; users in both arms (shadow) | cluster.PairedAggregate | difference.paired_difference |
| the same; separate users (ab, canary) | cluster.ArmAggregate per arm (stages.combine) | difference.unpaired_difference |
| one arm's own value | cluster.ArmAggregate | difference.arm_interval |
| error, timeout, empty rate, paired | t_only, c_only, n, PairedAggregate over users and over times | events.paired_events |
| the same, separate users (ab) | ArmAggregate per arm, PairedAggregate over times | events.unpaired_events |
| the same, canary | events per arm and stage, share | conditional.rate_ratio, log_e, log_alarm |
| latency quantiles | quantile.QuantileAggregate, QuantileLimits | quantile.critical, limit_levels, quantile_difference |
| judged win rate | users' means and how many users have each | winrate.win_rate; betting.bounded_mean |
| both orders: consistency, seat bias, order kappa | 3×3 winrate.OrderTable | winrate.consistency, first_seat_rate, order_kappa |
| win rate at equal length | rows or groups (x, dl, user) | lengthcontrol.length_controlled |
| judge against labels | q×q table | agreement.agreement; kappa_over_users |
| sample ratio | users per arm | srm.chi_square, srm.log_e |
| what is missing | counts | missing.losses, win_rate_bounds, worst_case_win_rate |
| several metrics in one number | Σ_u e_uj e_uk matrix | utility.utility_from_covariance, utility.utility |
| many questions | p or e values | multiplicity.holm, benjamini_hochberg, e_benjamini_hochberg |
| what does the interval say | low, high, margin, status | labels.label, labels.label_estimate |
| how many are needed | sd, effect, power | planning.* |
| how much longer | sd or event rates, distance to the line | planning.needed_units, event_planning.PairedRates, UnpairedRates |

`cluster.arm_aggregate`, `cluster.paired_aggregate`, `quantile.quantile_aggregate`, `winrate.order_table` make the aggregates from
arrays. Methods, formulas and sources stand in each module's docstring.
"""
