"""Paths by listing every one of them: the slow way that the fast one is compared with."""


def products(explainer, start):
    """The product along every path from a weight to the loss, by plain recursion over stored edges."""
    graph, found = explainer.graph, []

    def walk(block, j, product):
        if block is graph.end:
            found.append(product)
        for bundle in graph.leaving(block):
            matrix = bundle.jacobian
            low, high = matrix.indptr[j], matrix.indptr[j + 1]
            for i, slope in zip(matrix.indices[low:high], matrix.data[low:high], strict=True):
                walk(bundle.target, int(i), product * slope)

    for block, line, _ in start:
        for i, slope in zip(line.indices, line.data, strict=True):
            walk(block, int(i), slope)
    return found
