package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cleave-san/cleave/lun/process"
)

// Handle names one worker for ever. It is what a journal keeps.
type Handle struct {
	process.Process
	Socket string `json:"socket,omitempty"`
	// Lenders serve sources to the worker (lun.Lender), and end when it does.
	Lenders []process.Process `json:"lenders,omitempty"`
}

// Kill ends the worker and waits until it is gone, and its lenders are, or ctx is;
// then it removes its socket. A worker that is gone already is success; a process that has got
// the worker's PID since is left alone.
func Kill(ctx context.Context, h Handle) error {
	if err := h.Process.Kill(ctx); err != nil {
		return fmt.Errorf("recovery worker: %w", err)
	}
	if err := over(ctx, h.Lenders); err != nil {
		return err
	}
	if h.Socket != "" {
		if err := os.Remove(h.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("socket of recovery worker %d: %w", h.PID, err)
		}
	}
	return nil
}

// leaving is how long a lender may take to let its device go.
const leaving = 15 * time.Second

// over waits until the lenders of a worker that is gone are gone too, and kills
// those that don't leave.
func over(ctx context.Context, lenders []process.Process) error {
	patient, cancel := context.WithTimeout(ctx, leaving)
	defer cancel()
	for _, l := range lenders {
		err := l.Wait(patient)
		if err != nil && ctx.Err() == nil {
			err = l.Kill(ctx)
		}
		if err != nil {
			return fmt.Errorf("lender of a recovery worker: %w", err)
		}
	}
	return nil
}
