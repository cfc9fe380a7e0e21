"""Make lognormal_table.json: log E[sigmoid(-+beta h)] for LogNormal laws, and derivatives, to 30 digits.

The trapezoidal rule in the standardised variable at 50 digits, with a step for an error below 1e-35, summed outwards
from the integrand's peak; the sum with half the step must agree. Derivatives come from the density's score, not
from the sigmoid's, which is the other way round than in the package.

    python make_lognormal_table.py
"""

import json
from pathlib import Path

import mpmath as mp

DIGITS = 50
SCALES = ["0.01", "0.03", "0.1", "0.3", "0.7", "1", "2", "3.5", "5"]
LOCATIONS = ["-30", "-20", "-10", "-5", "-2", "-1", "0", "1", "2", "5", "10", "20", "30"]
FIELDS = (
    "log_losing",
    "losing_d_loc",
    "losing_d_scale",
    "log_winning",
    "winning_d_loc",
    "winning_d_scale",
)


def _sums(loc, scale, step, peak):
    """(integral, integral x, integral x^2) of phi(x) sigmoid(-exp(loc + scale x))."""
    totals = [mp.mpf(0)] * 3
    for direction in (1, -1):
        k = 0 if direction == 1 else 1
        while True:
            x = peak + direction * k * step
            term = mp.exp(-x * x / 2) / (1 + mp.exp(mp.exp(loc + scale * x)))
            for power in range(3):
                totals[power] += term * x**power
            if term * (1 + x * x) < mp.mpf(10) ** (-DIGITS - 3) * totals[0]:
                break
            k += 1
    return [total * step / mp.sqrt(2 * mp.pi) for total in totals]


def reference_point(loc, scale):
    """The six FIELDS for beta ~ LogNormal(loc, scale) and |h| = 1, strings in, mpf out."""
    # The derivatives are differences of nearly equal averages where exp(loc) is small.
    with mp.workdps(DIGITS + 20):
        m, s = mp.mpf(loc), mp.mpf(scale)
        y = mp.lambertw(s * s * mp.exp(m)).real
        peak = -y / s
        step = min(mp.mpf("0.07") / s, mp.mpf("0.3") / mp.sqrt(1 + y + s * s))
        (p, p_x, p_xx), (p_half, _, p_xx_half) = _sums(m, s, step, peak), _sums(m, s, step / 2, peak)
        for full, half in ((p, p_half), (p_xx, p_xx_half)):
            assert abs(full / half - 1) < mp.mpf(10) ** -35, (loc, scale)
        log_losing = mp.log(p)
        d_loc = p_x / p / s
        d_scale = (p_xx / p - 1) / s
        odds = -p / (1 - p)
        return dict(zip(FIELDS, (log_losing, d_loc, d_scale, mp.log1p(-p), odds * d_loc, odds * d_scale), strict=True))


def main():
    rows = []
    for scale in SCALES:
        for loc in LOCATIONS:
            point = reference_point(loc, scale)
            rows.append([loc, scale, *(mp.nstr(point[name], 25) for name in FIELDS)])
    path = Path(__file__).with_name("lognormal_table.json")
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"columns": {json.dumps(["loc", "scale", *FIELDS])}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
