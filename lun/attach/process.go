package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/process"
)

// dying reports whether the process is gone, or has been killed and only waits
// for a thread that can't end. Its exit alone does not tell: that is when the
// last thread has ended.
func dying(p process.Process) bool {
	fd, err := p.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return false
	}
	unix.Close(fd)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return true
	}
	return killed(string(b))
}

// killed reads proc_pid_status(5).
func killed(status string) bool {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			if strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X") {
				return true
			}
		case "SigPnd", "ShdPnd":
			pending, err := strconv.ParseUint(value, 16, 64)
			if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

// endWithin waits until the process is gone, and kills it when soft ends first:
// then it has until hard ends to go.
func endWithin(soft, hard context.Context, p process.Process) error {
	err := p.Wait(soft)
	if err != nil && soft.Err() != nil {
		return p.Kill(hard)
	}
	return err
}
