#version 450
// Reads far outside its buffer and writes down what it saw.
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer Y { uint y[]; };
layout(push_constant) uniform P { uint n; uint step; };
void main()
{
    uint i = gl_GlobalInvocationID.x;
    if (i < n)
        y[i] = y[n + i * step];
}
