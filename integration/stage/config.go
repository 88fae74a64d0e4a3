package stage

import (
	"fmt"
	"os"
	"strings"
)

// config is the control plane's configuration, in the words an operator would
// use. Its array socket is the proxy's.
func (s *Stage) config() string {
	var b strings.Builder
	fmt.Fprintf(&b, `version: 1
state: %s
socket: %s
arrays:
  - name: main
    type: embedded
    socket: %s
`, s.path("serve"), s.path("c.sock"), s.path("p.sock"))
	for _, a := range s.o.Arrays {
		b.WriteString("  - " + strings.ReplaceAll(strings.TrimSpace(a), "\n", "\n    ") + "\n")
	}
	b.WriteString("writers:\n  - type: qemu\n    vms:\n")
	for _, m := range s.vms {
		fmt.Fprintf(&b, "      - name: %s\n        qmp: %s\n", m.Name(), m.QMPSocket())
		if a := m.AgentSocket(); exists(a) {
			fmt.Fprintf(&b, "        agent: %s\n", a)
		}
	}
	fmt.Fprintf(&b, "recovery:\n  overlay: %s\n", s.path("views"))
	return b.String()
}

// exists tells a VM with an agent's channel from one without.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
