package recovery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/cleave-san/cleave/lun"
)

// Progress is called with the bytes done so far, from the goroutine that works.
// It may be nil.
type Progress func(done int64)

const copyBlock = 1 << 20

// each reads a device from its start in blocks.
func each(ctx context.Context, d lun.Device, progress Progress, fn func(b []byte, off int64) error) error {
	buf := make([]byte, copyBlock)
	for off := int64(0); off < d.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(copyBlock, d.Size()-off)]
		if _, err := d.ReadAt(b, off); err != nil {
			return fmt.Errorf("read at byte %d: %w", off, err)
		}
		if err := fn(b, off); err != nil {
			return err
		}
		off += int64(len(b))
		if progress != nil {
			progress(off)
		}
	}
	return nil
}

// Sum is the SHA-256 of a device's content.
func Sum(ctx context.Context, d lun.Device, progress Progress) ([sha256.Size]byte, error) {
	h := sha256.New()
	err := each(ctx, d, progress, func(b []byte, _ int64) error {
		h.Write(b) // never fails
		return nil
	})
	return [sha256.Size]byte(h.Sum(nil)), err
}

// Copy writes a device's content to a new file at path, sparse where it is
// zero, and syncs it. A file that exists is not touched (fs.ErrExist). On error
// the file is removed again.
func Copy(ctx context.Context, d lun.Device, path string, progress Progress) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := f.Truncate(d.Size()); err != nil {
		return err
	}
	zero := make([]byte, 64<<10)
	err = each(ctx, d, progress, func(b []byte, off int64) error {
		for len(b) > 0 {
			piece := b[:min(len(zero), len(b))]
			if !bytes.Equal(piece, zero[:len(piece)]) {
				if _, err := f.WriteAt(piece, off); err != nil {
					return err
				}
			}
			b, off = b[len(piece):], off+int64(len(piece))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.Sync()
}
