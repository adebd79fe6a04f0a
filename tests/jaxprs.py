"""Walk a jaxpr with all those inside it."""

import jax.extend.core


def equations(jaxpr):
    """Yield every equation of a jaxpr and of its sub-jaxprs (jit, cond, scan, custom_vjp ...)."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def products(jaxpr):
    """Return the shapes of the results of all matrix products and convolutions."""
    names = ("dot_general", "conv_general_dilated")
    return [e.outvars[0].aval.shape for e in equations(jaxpr) if e.primitive.name in names]
