package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// BusyShare watches the processors for half a second and returns the share of
// them, 0 to 1, that was in use, time stolen by the hypervisor included.
// /proc/loadavg would do no good: it remembers our own last minute.
func BusyShare(ctx context.Context) (float64, error) {
	before, err := cpuTimes()
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(500 * time.Millisecond):
	}
	after, err := cpuTimes()
	if err != nil || after.total == before.total {
		return 0, err
	}
	return 1 - float64(after.idle-before.idle)/float64(after.total-before.total), nil
}

type cpu struct{ idle, total uint64 }

func cpuTimes() (cpu, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpu{}, fmt.Errorf("how busy the machine is: %w", err)
	}
	return parseCPU(string(b))
}

// parseCPU reads the first line of /proc/stat (proc(5)): jiffies in user, nice,
// system, idle, iowait, irq, softirq and steal; what follows is part of user
// and nice.
func parseCPU(stat string) (cpu, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 6 || f[0] != "cpu" {
		return cpu{}, fmt.Errorf("how busy the machine is: /proc/stat begins with %.40q", line)
	}
	var c cpu
	for i, s := range f[1:min(len(f), 9)] {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return cpu{}, fmt.Errorf("how busy the machine is: /proc/stat: %w", err)
		}
		c.total += n
		if i == 3 || i == 4 {
			c.idle += n
		}
	}
	return c, nil
}
