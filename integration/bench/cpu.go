package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// CPU is the processor time that a process has used, in seconds, to 10 ms. It
// is an error if the process has ended.
func CPU(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("it has ended: %w", err)
	}
	// proc(5): after the name in brackets comes field 3; 14 and 15 are ticks.
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is %.100q", pid, b)
	}
	user, err := strconv.Atoi(f[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(f[12])
	return float64(user+system) / 100, err
}
