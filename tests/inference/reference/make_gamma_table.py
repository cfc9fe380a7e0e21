"""Make gamma_table.json: log E[sigmoid(-+beta h)] for Gamma laws, and derivatives, to 60 digits.

The alternating series sum_k (-1)^k (1 + k z)^-a is summed by the algorithm of Cohen, Rodriguez Villegas and Zagier with
90 terms (relative error below 1e-68) and checked on a part of the grid by quadrature of the defining integral.
mpmath.lerchphi is not used: version 1.3 returns 0 for some of these arguments.

    python make_gamma_table.py
"""

import json
from pathlib import Path

import mpmath as mp

TERMS = 90
DIGITS = 60
SHAPES = [f"1e{k}" if half == 0 else f"3e{k}" for k in range(-3, 6) for half in (0, 1)] + ["1e6"]
RATIOS = [f"1e{k}" for k in range(-12, 13)]
FIELDS = (
    "log_losing",
    "losing_d_shape",
    "losing_d_log_ratio",
    "log_winning",
    "winning_d_shape",
    "winning_d_log_ratio",
)


def _alternating_sum(terms):
    """sum_k (-1)^k terms[k], algorithm 1 of the paper."""
    n = len(terms)
    d = (3 + mp.sqrt(8)) ** n
    d = (d + 1 / d) / 2
    b, c, total = mp.mpf(-1), -d, mp.mpf(0)
    for k in range(n):
        c = b - c
        total += c * terms[k]
        b = b * (k + n) * (k - n) / ((k + mp.mpf(1) / 2) * (k + 1))
    return total / d


def reference_point(shape, ratio):
    """The six FIELDS for Gamma(shape, rate 1) and |h| = ratio, strings in, mpf out."""
    with mp.workdps(DIGITS + 15):
        a, z = mp.mpf(shape), mp.mpf(ratio)
        fraction = z / (1 + z)
        logs = [mp.log1p(k * fraction) for k in range(TERMS)]
        values = [mp.exp(-a * x) for x in logs]
        total = _alternating_sum(values)
        d_shape = _alternating_sum([-x * v for x, v in zip(logs, values, strict=True)]) / total
        # d fraction / d log z = z / (1 + z)^2.
        steps = [-a * k / (1 + k * fraction) * v for k, v in enumerate(values)]
        d_log_ratio = _alternating_sum(steps) / total * fraction / (1 + z)
        log_losing = -a * mp.log1p(z) + mp.log(total)
        losing_d_shape = -mp.log1p(z) + d_shape
        losing_d_log_ratio = -a * fraction + d_log_ratio
        losing = mp.exp(log_losing)
        log_winning = mp.log1p(-losing)
        odds = -losing / (1 - losing)
        return dict(
            zip(
                FIELDS,
                (
                    log_losing,
                    losing_d_shape,
                    losing_d_log_ratio,
                    log_winning,
                    odds * losing_d_shape,
                    odds * losing_d_log_ratio,
                ),
                strict=True,
            )
        )


def second_derivatives(shape, ratio):
    """Second derivatives of log P in (shape, rate, h) at rate 1 and |h| = ratio, by side.

    log Q = -a log(1 + z) + log S, S = sum_k (-1)^k y_k^-a with y_k = (1 + (k+1) z)/(1 + z), so that the second derivative
    in a, which may be as small as y_1^-a, isn't a difference of large numbers. Sums of derived terms; z = |h|/rate.

    ``{"losing": {"shape shape": ..., "shape rate": ..., ...}, "winning": ...}``, mpf; the sign of h is that of the side.
    """
    with mp.workdps(DIGITS + 15):
        a, z = mp.mpf(shape), mp.mpf(ratio)
        columns = []
        for k in range(TERMS):
            y = (1 + (k + 1) * z) / (1 + z)
            power, slope = y**-a, k / ((1 + (k + 1) * z) * (1 + z))
            bend = 1 / (1 + z) ** 2 - ((k + 1) / (1 + (k + 1) * z)) ** 2
            columns.append((power, mp.log(y), slope, bend))
        total, d_a, d_z, d_aa, d_az, d_zz = (
            _alternating_sum([term(*column) for column in columns])
            for term in (
                lambda p, x, s, b: p,
                lambda p, x, s, b: -x * p,
                lambda p, x, s, b: -a * s * p,
                lambda p, x, s, b: x * x * p,
                lambda p, x, s, b: (a * x - 1) * s * p,
                lambda p, x, s, b: (a * a * s * s - a * b) * p,
            )
        )
        l_a, l_z = d_a / total, d_z / total
        l_aa, l_az, l_zz = d_aa / total - l_a**2, d_az / total - l_a * l_z, d_zz / total - l_z**2
        l_a, l_z = l_a - mp.log1p(z), l_z - a / (1 + z)
        l_az, l_zz = l_az - 1 / (1 + z), l_zz + a / (1 + z) ** 2
        losing = total * (1 + z) ** -a
        odds = losing / (1 - losing)

        def in_arguments(sign, l_z, l_aa, l_az, l_zz):
            return {
                "shape shape": l_aa,
                "shape rate": -z * l_az,
                "shape h": sign * l_az,
                "rate rate": 2 * z * l_z + z * z * l_zz,
                "rate h": -sign * (l_z + z * l_zz),
                "h h": l_zz,
            }

        # d log(1 - Q) = -odds d log Q and d odds = odds (1 + odds) d log Q.
        seconds = (
            -odds * (second + (1 + odds) * product)
            for second, product in ((l_aa, l_a * l_a), (l_az, l_a * l_z), (l_zz, l_z * l_z))
        )
        return {
            "losing": in_arguments(-1, l_z, l_aa, l_az, l_zz),
            "winning": in_arguments(1, -odds * l_z, *seconds),
        }


def quadrature_point(shape, ratio):
    """log E[sigmoid(-beta h)] by mpmath.quad over log beta, an independent route."""
    with mp.workdps(40):
        a, z = mp.mpf(shape), mp.mpf(ratio)

        def integrand(u):
            beta = mp.exp(u)
            return mp.exp(a * u - beta - mp.loggamma(a)) / (1 + mp.exp(beta * z))

        peak = mp.log(a / (1 + z))
        width = 1 / mp.sqrt(a)
        left = peak - mp.mpf(100) / a - 12 * width
        right = peak + 6 + 12 * width
        # quad's tolerance is absolute: the integrand is scaled to 1 at its peak.
        top = integrand(peak)
        points = [left + (right - left) * k / 40 for k in range(41)]
        return mp.log(mp.quad(lambda u: integrand(u) / top, points)) + mp.log(top)


def main():
    rows = []
    for shape in SHAPES:
        for ratio in RATIOS:
            point = reference_point(shape, ratio)
            rows.append([shape, ratio, *(mp.nstr(point[name], 25) for name in FIELDS)])
    for shape in ("0.3", "1", "30"):
        for ratio in ("1e-3", "1", "100"):
            difference = abs(quadrature_point(shape, ratio) / reference_point(shape, ratio)["log_losing"] - 1)
            assert difference < mp.mpf(10) ** -25, (shape, ratio, difference)
    path = Path(__file__).with_name("gamma_table.json")
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"columns": {json.dumps(["shape", "ratio", *FIELDS])}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
