#version 450
// Never ends: the condition is in memory, where nobody makes it true. A driver that ends loops after so many rounds
// all the same is given more groups than anybody waits for.
layout(local_size_x = 1) in;
layout(set = 0, binding = 0) coherent volatile buffer Y { uint y[]; };
void main()
{
    while (y[0] != 0xffffffffu)
        y[1] = y[1] + 1;
}
