package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cleave-san/cleave/lun/process"
)

// Handle names one worker for ever. It is what a journal keeps.
type Handle struct {
	process.Process
	Socket string `json:"socket,omitempty"`
}

// Kill ends the worker and waits until it is gone, or ctx is; then it removes
// its socket. A worker that is gone already is success; a process that has got
// the worker's PID since is left alone.
func Kill(ctx context.Context, h Handle) error {
	if err := h.Process.Kill(ctx); err != nil {
		return fmt.Errorf("recovery worker: %w", err)
	}
	if h.Socket != "" {
		if err := os.Remove(h.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("socket of recovery worker %d: %w", h.PID, err)
		}
	}
	return nil
}
