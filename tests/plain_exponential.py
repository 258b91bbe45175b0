"""The exponential integrators as plain loops (see plain_samplers.py): closed forms, quadrature and divided differences,
where sdjax has one integrator for all of them."""

import itertools

import numpy as np


def lam(sigma):
    return -np.log(sigma)


def epsilon(denoise, x, s):
    return (x - denoise(x, s)) / s


def order_now(order, k, steps, lower_order_final):
    """With `lower_order_final`, the last steps of runs of under 15 steps are of falling order."""
    falling = steps - k if lower_order_final and steps < 15 else order
    return min(order, k + 1, falling)


def dpm_step(x, s, t, z, data, sde, derivatives):
    """One step from estimates' (value, first difference, second difference), with the weights of `dpm_weights`."""
    h = lam(t) - lam(s)
    c = dpm_weights(h, data, sde)
    change = sum(weight * derivative for weight, derivative in zip(c, derivatives))
    if data:
        decay = np.exp(-(1 + sde) * h)
        return decay * x + change + sde * t * np.sqrt(1 - np.exp(-2 * h)) * z
    return x - (1 + sde) * t * change + sde * t * np.sqrt(np.exp(2 * h) - 1) * z


def dpm_weights(h, data, sde):
    """Lu et al. (2022), appendix B, for a value, a slope and a curvature."""
    if data:
        h = (1 + sde) * h
        first = 1 - np.exp(-h)
        second = 1 - first / h
        return first, second, 1 / 2 - second / h
    first = np.exp(h) - 1
    second = first / h - 1
    return first, second, second / h - 1 / 2


def dpm_multistep(order, data, sde=0.0):
    def sample(denoise, x, sigmas, noise, solver_type="midpoint", lower_order_final=True, euler_at_final=False):
        steps, history = len(sigmas) - 1, []
        for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
            history.insert(0, (lam(s), denoise(x, s) if data else epsilon(denoise, x, s)))
            now = order_now(order, k, steps, lower_order_final)
            if k == steps - 1 and euler_at_final:
                now = 1
            if t == 0:
                x = history[0][1] if data else x - s * history[0][1]
                continue
            h = lam(t) - lam(s)
            levels, m = [level for level, _ in history], [value for _, value in history]
            derivatives = [m[0]]
            if now > 1:
                r0 = (levels[0] - levels[1]) / h
                slope = (m[0] - m[1]) / r0
            if now == 2 and solver_type == "midpoint":
                derivatives = [m[0] + slope / 2]
            elif now == 2:
                derivatives += [slope]
            elif now == 3:
                r1 = (levels[1] - levels[2]) / h
                before = (m[1] - m[2]) / r1
                bend = (slope - before) / (r0 + r1)
                derivatives += [slope + r0 * bend, bend]
            x = dpm_step(x, s, t, noise(k), data, sde, derivatives)
        return x

    return sample


def dpmpp_2m_sde(denoise, x, sigmas, noise, eta=1.0, s_noise=1.0, solver_type="midpoint"):
    """k-diffusion's DPM++ 2M SDE."""
    before = last_h = None
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        x0 = denoise(x, s)
        if t == 0:
            x = x0
            continue
        h = np.log(s / t)
        share = -np.expm1(-h - eta * h)
        x = t / s * np.exp(-eta * h) * x + share * x0
        if before is not None:
            weight = share / 2 if solver_type == "midpoint" else 1 - share / (h + eta * h)
            x = x + weight * h / last_h * (x0 - before)
        x = x + s_noise * t * np.sqrt(-np.expm1(-2 * eta * h)) * noise(k)
        before, last_h = x0, h
    return x


def dpmpp_3m_sde(denoise, x, sigmas, noise, eta=1.0, s_noise=1.0):
    """k-diffusion's DPM++ 3M SDE."""
    d, hs = [], []
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        d.insert(0, denoise(x, s))
        if t == 0:
            x = d[0]
            continue
        h = np.log(s / t)
        long = h * (1 + eta)
        x = np.exp(-long) * x - np.expm1(-long) * d[0]
        phi2 = np.expm1(-long) / long + 1
        if len(d) > 2:
            r0, r1 = hs[0] / h, hs[1] / h
            a, b = (d[0] - d[1]) / r0, (d[1] - d[2]) / r1
            x = x + phi2 * (a + (a - b) * r0 / (r0 + r1)) - (phi2 / long - 0.5) * (a - b) / (r0 + r1)
        elif len(d) > 1:
            x = x + phi2 * (d[0] - d[1]) * h / hs[0]
        x = x + s_noise * t * np.sqrt(-np.expm1(-2 * h * eta)) * noise(k)
        hs.insert(0, h)
    return x


def dpm_singlestep(order, data):
    """Lu et al. (2022): blocks of `order` steps over the grid; every stage starts from the block's first sample."""

    def sample(denoise, x, sigmas, noise, solver_type="midpoint", lower_order_final=True):
        steps, done = len(sigmas) - 1, 0
        whole = steps % order == 0
        while done < steps:
            block = min(order, steps - done)
            last = done + block == steps
            stages = list(range(1, block + 1))
            if last and (sigmas[-1] == 0 or (whole and lower_order_final)):
                stages[-1] = 1
            origin, start, m = x, sigmas[done], []
            for stage in stages:
                s, t = sigmas[done], sigmas[done + 1]
                done += 1
                m.append(denoise(x, s) if data else epsilon(denoise, x, s))
                if t == 0:
                    return m[-1] if data else x - s * m[-1]
                if stage == 1:
                    x = dpm_step(x, s, t, 0, data, 0, [m[-1]])
                    continue
                span = lam(t) - lam(start)
                slope = (m[-1] - m[0]) * span / (lam(s) - lam(start))
                derivatives = [m[0], slope]
                if stage == 2 and solver_type == "midpoint":
                    derivatives = [m[0] + slope / 2]
                if stage == 3 and solver_type == "heun":
                    r1, r2 = (lam(sigmas[done - 2]) - lam(start)) / span, (lam(s) - lam(start)) / span
                    early = (m[1] - m[0]) / r1
                    derivatives = [m[0], (r2 * early - r1 * slope) / (r2 - r1), 2 * (slope - early) / (r2 - r1)]
                x = dpm_step(origin, start, t, 0, data, 0, derivatives)
        return x

    return sample


NODES, QUADRATURE = np.polynomial.legendre.leggauss(40)


def lagrange(levels, i, u):
    return np.prod([(u - level) / (levels[i] - level) for j, level in enumerate(levels) if j != i], axis=0)


def integral(f, a, b):
    return (b - a) / 2 * np.sum(QUADRATURE * f((a + b) / 2 + (b - a) / 2 * NODES))


def deis(denoise, x, sigmas, noise, solver_order=2, lower_order_final=True):
    """Zhang and Chen (2022), equation 15 in rho = sigma, the polynomials in log rho; by quadrature."""
    steps, history = len(sigmas) - 1, []
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        history.insert(0, (np.log(s), epsilon(denoise, x, s)))
        now = history[: 1 if t == 0 else order_now(solver_order, k, steps, lower_order_final)]
        levels = [level for level, _ in now]
        for i, (_, e) in enumerate(now):
            x = x + e * integral(lambda rho, i=i, levels=levels: lagrange(levels, i, np.log(rho)), s, t)
    return x


def unipc(
    denoise, x, sigmas, noise, solver_order=2, solver_type="bh2", predict_x0=True, lower_order_final=True,
    disable_corrector=(),
):  # fmt: skip
    """Zhao et al. (2023), algorithms 5 to 8: the conditions of order as linear systems."""

    def update(x, s, t, m0, others, exact):
        """others: (level, estimate), the last of them at `t` in the corrector."""
        h = lam(t) - lam(s)
        hh = -h if predict_x0 else h
        B = hh if solver_type == "bh1" else np.expm1(hh)
        r = np.array([(lam(level) - lam(s)) / h for level, _ in others])
        b, phi, factorial = [], np.expm1(hh) / hh - 1, 1
        for i in range(1, len(others) + 1):
            b.append(phi * factorial / B)
            factorial *= i + 1
            phi = phi / hh - 1 / factorial
        weights = np.linalg.solve(np.stack([r**i for i in range(len(r))]), b) if exact else [1 / 2] * len(r)
        residual = sum(w * (m - m0) / ri for w, ri, (_, m) in zip(weights, r, others))
        scale = 1 if predict_x0 else t
        return (t / s if predict_x0 else 1) * x - scale * (np.expm1(hh) * m0 + B * residual)

    steps, history = len(sigmas) - 1, []  # (level, estimate), the newest first
    corrected, order = x, 0
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        m = denoise(x, s) if predict_x0 else epsilon(denoise, x, s)
        if k > 0 and k - 1 not in disable_corrector:
            x = update(corrected, history[0][0], s, history[0][1], [*history[1:order], (s, m)], order > 1)
        history.insert(0, (s, m))
        order = min(solver_order, k + 1, steps - k if lower_order_final else solver_order)
        corrected = x
        if t == 0:
            return m if predict_x0 else x - s * m
        x = update(x, s, t, m, history[1:order], order > 2)
    return x


def sa_solver(
    denoise, x, sigmas, noise, predictor_order=2, corrector_order=2, algorithm_type="data_prediction", tau=1.0,
    lower_order_final=True,
):  # fmt: skip
    """Xue et al. (2023), algorithm 1, with the same tau throughout; the coefficients by quadrature."""
    data, k1 = algorithm_type == "data_prediction", 1 + tau**2

    def update(x, s, t, points, z):
        a, b = lam(s), lam(t)
        h = b - a
        levels = [lam(level) for level, _ in points]
        weight = (lambda u: np.exp(-k1 * (b - u))) if data else (lambda u: -np.exp(-u))
        coefficients = [
            k1 * integral(lambda u, i=i: weight(u) * lagrange(levels, i, u), a, b) for i in range(len(points))
        ]
        if data and len(points) == 2:  # appendix B.1: the slope's integral is rounded to h**2 / 2
            slope = k1 * (h**2 / 2 - integral(lambda u: weight(u) * (u - a), a, b)) / (levels[0] - levels[1])
            coefficients = [coefficients[0] + slope, coefficients[1] - slope]
        change = sum(c * m for c, (_, m) in zip(coefficients, points))
        if data:
            return np.exp(-(tau**2) * h) * t / s * x + change + t * np.sqrt(1 - np.exp(-2 * tau**2 * h)) * z
        return x + change + tau * t * np.sqrt(np.exp(2 * h) - 1) * z

    steps, history, before = len(sigmas) - 1, [], x
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        history.insert(0, (s, denoise(x, s) if data else epsilon(denoise, x, s)))
        left = steps - k
        if k > 0:
            order = min(corrector_order, left + 2) if lower_order_final else corrector_order
            x = update(before, history[1][0], s, history[: min(order, k + 1)], noise(k - 1))
        before = x
        if t == 0:
            return history[0][1] if data else x - s * history[0][1]
        order = min(predictor_order, left) if lower_order_final else predictor_order
        x = update(x, s, t, history[:order], noise(k))
    return x


PLAIN = {
    "dpmpp_3m": dpm_multistep(3, data=True),
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmsolver_2m": dpm_multistep(2, data=False),
    "dpmsolver_3m": dpm_multistep(3, data=False),
    "dpmsolver_2m_sde": dpm_multistep(2, data=False, sde=1.0),
    "dpmpp_2s": dpm_singlestep(2, data=True),
    "dpmpp_3s": dpm_singlestep(3, data=True),
    "dpmsolver_2s": dpm_singlestep(2, data=False),
    "dpmsolver_3s": dpm_singlestep(3, data=False),
    "deis": deis,
    "unipc": unipc,
    "sa_solver": sa_solver,
}
