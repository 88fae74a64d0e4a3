package hostvolume

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// Flush makes all that was written to the file system of the file at path, data
// and metadata, stable on its disks, or the block device at path. It returns when
// that is so, or when ctx ends.
//
// It is done by sync(1), in a process of its own: where a disk hangs, neither can
// the kernel be called back nor what waits for it be ended, and this process has
// to go on, and to end when it is told to.
func (h *Host) Flush(ctx context.Context, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("flushing what lies under %s: %w", path, err)
	}
	calls := [][]string{{"--", path}} // fsync(2)
	if st.Mode()&fs.ModeDevice == 0 {
		// syncfs(2) alone needn't flush the disk's own cache where the log has
		// nothing to say; fsync(2) does.
		calls = [][]string{{"-f", "--", path}, {"--", path}}
	}
	for _, args := range calls {
		if err := sync(ctx, args); err != nil {
			return fmt.Errorf("flushing what lies under %s: %w", path, err)
		}
	}
	return nil
}

// sync runs sync(1). After ctx's end nobody waits for it but the goroutine that
// takes its exit, should it ever come.
func sync(ctx context.Context, args []string) error {
	cmd := exec.Command("sync", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if text := strings.TrimSpace(said.String()); err != nil && text != "" {
			return fmt.Errorf("%w (%.200s)", err, text)
		}
		return err
	case <-ctx.Done():
		_ = cmd.Process.Kill() // it may be gone
		return context.Cause(ctx)
	}
}
