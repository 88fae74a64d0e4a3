package btrfs

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/cleave-san/cleave/lun"
)

// coding is how an extent is compressed.
type coding uint8

const (
	plain coding = iota
	codedZlib
	codedLZO
	codedZstd
)

func (c coding) known() bool { return c <= codedZstd }

func (c coding) String() string { return [...]string{"none", "zlib", "lzo", "zstd"}[c] }

// decoders are for zstd; one takes a while to make. The window of Btrfs is at most
// 128 KiB.
var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxEncoded))
	if err != nil {
		return err
	}
	return d
}}

// decode makes size bytes of what an extent holds. What the stream ends short of is
// zeroes. sector is the file system's, inline says where the extent lies: LZO is
// framed by both.
func (c coding) decode(b []byte, size, sector int, inline bool) ([]byte, error) {
	out := make([]byte, size)
	var err error
	switch c {
	case codedZlib:
		var z io.ReadCloser
		if z, err = zlib.NewReader(bytes.NewReader(b)); err == nil {
			_, err = io.ReadFull(z, out)
		}
	case codedZstd:
		pooled := decoders.Get()
		d, ok := pooled.(*zstd.Decoder)
		if !ok {
			return nil, pooled.(error)
		}
		if err = d.Reset(bytes.NewReader(b)); err == nil {
			var n int
			if n, err = io.ReadFull(d, out); n > 0 && errors.Is(err, zstd.ErrMagicMismatch) {
				err = nil // behind the one frame the sector is filled up
			}
		}
		decoders.Put(d)
	case codedLZO:
		err = unLZO(out, b, sector, inline)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err != nil {
		return nil, &lun.FormatError{Format: kind, Offset: -1, Field: "compression", Value: c.String(), Reason: fmt.Sprintf("the extent can't be decoded: %v", err)}
	}
	return out, nil
}
