package machine

import "testing"

func TestInPod(t *testing.T) {
	const root, nested = "2:pids:/\n1:memory:/\n", "2:pids:/kubepods/pod1/c\n1:memory:/kubepods/pod1/c\n"
	for what, c := range map[string]struct {
		own, its string
		want     bool
	}{
		"a pod's":                        {root, "2:pids:/kubepods/burstable/pod2/c\n1:memory:/\n", true},
		"containerd's own":               {root, "1:memory:/k8s.io/c\n", true},
		"nobody's":                       {root, root, false},
		"another's in the same machine":  {nested, nested, false},
		"a pod's in a machine in a pod":  {nested, "1:memory:/kubepods/pod1/c/kubepods/pod2/c\n", true},
		"of a machine that is elsewhere": {nested, "1:memory:/kubepods/pod2/c\n", false},
		"of an unknown controller":       {root, "9:job:/kubepods/pod2/c\n", false},
		"nothing":                        {"", "", false},
	} {
		if got := inPod(c.own, c.its); got != c.want {
			t.Errorf("%s: got %v", what, got)
		}
	}
}
