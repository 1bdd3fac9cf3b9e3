#version 450
// Writes far outside the memory of its group.
layout(local_size_x = 64) in;
layout(set = 0, binding = 0) buffer Y { uint y[]; };
layout(push_constant) uniform P { uint far; };
shared uint s[64];
void main()
{
    uint i = gl_LocalInvocationID.x;
    s[i * far] = i;
    barrier();
    y[i] = s[(63u - i) * far];
}
