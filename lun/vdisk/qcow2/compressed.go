package qcow2

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/klauspost/compress/zstd"
)

// unpacker reads compressed clusters. It keeps the last one, for readers in
// small steps, and its decoders only until the next collection of garbage.
type unpacker struct {
	dev     lun.Device
	kind    compression
	cluster int64
	bits    uint // of a descriptor: those of the offset
	pool    sync.Pool

	mu   sync.Mutex
	last int64 // descriptor; 0: none
	data []byte
}

func newUnpacker(dev lun.Device, h *header) *unpacker {
	return &unpacker{dev: dev, kind: h.compression, cluster: h.cluster(), bits: 62 - (h.clusterBits - 8)}
}

// read fills p from byte inside of the cluster with descriptor d.
func (u *unpacker) read(p []byte, d, inside int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last != d || u.data == nil {
		u.last = 0
		if u.data == nil {
			u.data = make([]byte, u.cluster)
		}
		if err := u.unpack(d); err != nil {
			u.data = nil
			return err
		}
		u.last = d
	}
	copy(p, u.data[inside:])
	return nil
}

// unpack reads exactly one cluster; what follows it in the last sector belongs
// to others.
func (u *unpacker) unpack(d int64) error {
	off := d & (1<<u.bits - 1)
	if off >= u.dev.Size() {
		return damaged(-1, "compressed cluster", off, "begins beyond the file of %d bytes", u.dev.Size())
	}
	sectors := d>>u.bits + 1
	end := min(off&^511+sectors*512, u.dev.Size()) // the last sector may not be whole
	from := off &^ 4095
	to := min((end+4095)&^4095, u.dev.Size())
	b := make([]byte, to-from)
	if _, err := u.dev.ReadAt(b, from); err != nil {
		return fmt.Errorf("read a compressed cluster at byte %d: %w", off, err)
	}
	err := u.decode(bytes.NewReader(b[off-from : end-from]))
	if err != nil {
		return damaged(off, "compressed cluster", nil, "of %d bytes can't be unpacked: %v", end-off, err)
	}
	return nil
}

func (u *unpacker) decode(in *bytes.Reader) error {
	if u.kind == deflate {
		r, ok := u.pool.Get().(io.ReadCloser)
		if !ok {
			r = flate.NewReader(in)
		} else if err := r.(flate.Resetter).Reset(in, nil); err != nil {
			return err
		}
		_, err := io.ReadFull(r, u.data)
		u.pool.Put(r)
		return err
	}
	z, ok := u.pool.Get().(*zstd.Decoder)
	if !ok {
		var err error
		// One at a time, without goroutines. A frame's window is at most the
		// largest cluster, since nothing longer was ever packed.
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(1<<maxClusterBits))
		if err != nil {
			return err
		}
	}
	if err := z.Reset(in); err != nil {
		return err
	}
	_, err := io.ReadFull(z, u.data)
	u.pool.Put(z)
	return err
}
