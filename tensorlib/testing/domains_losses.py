"""Domains of losses and norms, by name: see `tensorlib.testing.domains`."""


def same(count, low=-9, high=9, options=None):
    """Operands of one shape, as losses take them."""

    def domain(s, dtype):
        shape = s.shape(1, 2, empty=False)
        return tuple(s.array(shape, None, low, high) for _ in range(count)), {
            k: s.pick(v) for k, v in (options or {}).items()
        }

    return domain


# ---- losses and norms ------------------------------------------------------------------------------------------------

REDUCTIONS = {"reduction": ["mean", "sum", "none"]}
l1_loss = mse_loss = same(2)
smooth_l1_loss, huber_loss = (same(2, options=REDUCTIONS | {k: [1.0, 2.0]}) for k in ("beta", "delta"))
poisson_nll_loss = same(2, 0.1, 3, REDUCTIONS)
binary_cross_entropy = same(2, 0.01, 0.99, REDUCTIONS)
binary_cross_entropy_with_logits = same(2, 0.01, 0.99, REDUCTIONS)
gaussian_nll_loss = same(3, 0.1, 4, REDUCTIONS)
kl_div = same(2, 0.1, 2, REDUCTIONS | {"log_target": [True, False]})


def _signs(s, shape):
    return 2 * s.array(shape, "i64", 0, 1) - 1


def margin_ranking_loss(s, dtype):
    (a, b), options = same(2, options=REDUCTIONS | {"margin": [0.0, 1.0]})(s, dtype)
    return (a, b, _signs(s, a.shape)), options


def hinge_embedding_loss(s, dtype):
    (a,), options = same(1, options=REDUCTIONS)(s, dtype)
    return (a, _signs(s, a.shape)), options


def _vectors(count):
    def domain(s, dtype):
        shape = (s.integer(1, 5), s.integer(2, 3 if s.smooth else 9))
        return tuple(s.array(shape, None, 0.5, 3) for _ in range(count)), {}

    return domain


cosine_similarity, pairwise_distance, triplet_margin_loss, normalize = map(_vectors, (2, 2, 3, 1))


def info_nce(s, dtype):
    pair, _ = _vectors(2)(s, dtype)
    n, width = pair[0].shape
    options = {"temperature": s.pick([0.5, 1.0])}
    return (*pair, s.pick([None, s.array((n, s.integer(1, 3), width), None, 0.5, 3)])), options


def cosine_embedding_loss(s, dtype):
    (a, b), _ = _vectors(2)(s, dtype)
    return (a, b, _signs(s, a.shape[:1])), {"margin": s.pick([0.0, 0.5])}


def _classes(s, dtype):
    n, c = s.integer(1, 4), s.integer(2, 5)
    return s.array((n, c), None, -4, 4), s.array((n,), "i64", 0, c - 1)


def nll_loss(s, dtype):
    return _classes(s, dtype), {"reduction": s.pick(["mean", "sum", "none"])}


def cross_entropy(s, dtype):
    args, options = nll_loss(s, dtype)
    return args, options | {"label_smoothing": s.pick([0.0, 0.1])}


def group_norm(s, dtype):
    groups = s.integer(1, 2)
    return (s.array((2, groups * 2, s.integer(2, 5)), None, -4, 4), groups), {}


def instance_norm(s, dtype):
    return (s.array((2, 2, s.integer(2, 6)), None, -4, 4),), {}


def batch_norm(s, dtype):
    return (s.array((3, 2, s.integer(2, 5)), None, -4, 4),), {"training": True}


def local_response_norm(s, dtype):
    return (s.array((2, s.integer(1, 5), 3), None, -4, 4), s.integer(1, 3)), {}
