#version 450
// y[i] = m * x[i] + add
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) writeonly buffer Y { float y[]; };
layout(set = 0, binding = 1) readonly buffer X { float x[]; };
layout(push_constant) uniform P { uint n; float m; float add; };
void main()
{
    uint i = gl_GlobalInvocationID.x;
    if (i < n)
        y[i] = m * x[i] + add;
}
