"""Statistics: aggregates (or arrays) and counts in, `Estimate`s or small frozen dataclasses out. Pure, numpy and scipy only.

Every difference is treatment − control. How often the data is looked at is one object, passed as `multiplier=`:
`sequential.Fixed()` (default), `sequential.Anytime(n_star=…)` or `group_sequential.Scheduled(fractions=…)`. For several goals,
guardrails or harm stops call again with `alpha/S`, `alpha` or `alpha/K`. All numbers of an `Estimate` are finite or None.

| question | from | function |
|---|---|---|
| mean, ratio, cost; users in both arms (shadow) | clusters.PairedAggregate | means.paired_difference |
| the same; separate users (ab, canary) | ArmAggregate per arm; clusters.combine over stages | means.unpaired_difference |
| one arm's own value | clusters.ArmAggregate | means.arm_interval |
| error, timeout, empty rate, paired | t_only, c_only, n; PairedAggregate over users and over times | event_rates.paired_events |
| the same, separate users (ab) | ArmAggregate per arm, PairedAggregate over times | event_rates.unpaired_events |
| the same, canary | events per arm and stage, share | event_rates.rate_ratio, log_e, log_alarm |
| one rate against a fixed limit, any look | events, n | event_rates.lower_bound, log_e_above |
| one share | events, n | proportions.wilson, clustered_proportion |
| two shares, paired or not | counts | proportions.mcnemar, tango_limits, newcombe_limits, newcombe_paired_limits, tost |
| latency quantiles | quantiles.QuantileAggregate, QuantileLimits | quantiles.arm_limits, quantile_difference |
| judged win rate | users' means and how many users have each | winrate.win_rate; betting.bounded_mean |
| both orders: consistency, seat bias, kappa | 3×3 winrate.OrderTable | winrate.consistency, first_seat_rate, order_kappa |
| win rate at equal length | rows or groups (x, dl, user) | length.length_controlled |
| judge against labels | q×q table | agreement.agreement, kappa_over_users, krippendorff_alpha, spearman |
| sample ratio | users per arm | srm.chi_square, srm.log_e |
| what is missing | counts | srm.losses, win_rate_bounds, worst_case_win_rate |
| several metrics in one number | Σ_u e_uj e_uk matrix, or rows | multiplicity.utility, composite |
| many hypotheses | p or e values | multiplicity.holm, bonferroni, benjamini_hochberg, e_benjamini_hochberg |
| what an interval shows | low, high, margin, status | estimates.label |
| how many are needed | sd, effect, power | planning.paired_n, unpaired_n, mcnemar_n, equivalence_n, maximum_n |
| how much longer | sd or event rates, distance to the line | planning.needed_units, PairedRates, UnpairedRates |

`clusters.arm_aggregate`, `clusters.paired_aggregate`, `quantiles.quantile_aggregate` and `winrate.order_table` make the
aggregates from arrays. Methods, formulas and sources are in each module's docstring and in docs/statistics.md.
"""
