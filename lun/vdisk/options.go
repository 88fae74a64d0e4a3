package vdisk

import (
	"errors"
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// DefaultDepth is how many parents a disk may have, one behind the other, with
// Options.Depth 0.
const DefaultDepth = 16

// Options of opening a container. The zero value opens a single file for
// reading and in-place writing.
type Options struct {
	// Resolver opens files that headers name. nil opens none.
	Resolver Resolver

	// ReadOnly makes every write lun.ErrReadOnly, and asks the resolver for
	// nothing that can be written. Parents are always opened so.
	ReadOnly bool

	// Depth bounds the chain of parents. 0: DefaultDepth; below 0: no parents.
	Depth int

	// Snapshot opens an internal snapshot instead of the current state, by its
	// name or, failing that, its ID; such a disk is read-only. That there is
	// none, or several, is ErrNoSnapshot.
	Snapshot string

	// Formats opens parents of formats that the child's package does not read,
	// by the format's name in Info.Format.
	Formats map[string]OpenFunc
}

// OpenFunc opens a container; see the package comment.
type OpenFunc func(dev lun.Device, o Options) (Disk, error)

// File has the resolver open a further file of this layer: an external data
// file, an extent. The caller closes it with Close. A refusal is ErrOtherFile.
func (o *Options) File(name string) (lun.Device, error) {
	if o.Resolver == nil {
		return nil, fmt.Errorf("%w, named %.200q, and only a single file was opened", ErrOtherFile, name)
	}
	d, err := o.Resolver.Resolve(name, o.ReadOnly)
	if err != nil {
		return nil, fmt.Errorf("%w, named %.200q: %w", ErrOtherFile, name, err)
	}
	return d, nil
}

// Parent has the resolver open a parent and then the format, one of Formats or
// "raw", with the chain's remaining depth and for reading only. own, if not nil,
// is the child's OpenFunc for parents of its own format, whose name is ownName.
func (o *Options) Parent(name, format string, ownName string, own OpenFunc) (Disk, error) {
	depth := o.Depth
	if depth == 0 {
		depth = DefaultDepth
	}
	if depth < 0 {
		return nil, fmt.Errorf("%.200q: %w", name, ErrDepth)
	}
	child := *o
	child.ReadOnly, child.Snapshot = true, ""
	if child.Depth = depth - 1; child.Depth == 0 {
		child.Depth = -1
	}
	var open OpenFunc
	switch f, ok := o.Formats[format]; {
	case own != nil && format == ownName:
		open = own
	case ok:
		open = f
	case format == "raw":
		open = Raw
	default:
		return nil, fmt.Errorf("%w, named %.200q, of a format that is not read: %.40q", ErrOtherFile, name, format)
	}
	dev, err := child.File(name)
	if err != nil {
		return nil, err
	}
	d, err := open(dev, child)
	if errors.Is(err, lun.ErrNotFormat) {
		err = &lun.FormatError{Format: format, Offset: 0, Field: "magic", Reason: "the parent is of another format than its child says"}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("parent %.200q: %w", name, err), Close(dev))
	}
	return &owned{d, dev}, nil
}

// FirstParent is Parent for a child of format that knows its parent, of the same
// format, by several names: it opens the first that the resolver takes, and
// returns which that was.
func (o *Options) FirstParent(format string, names []string, own OpenFunc) (d Disk, name string, err error) {
	var refused []error
	for _, name := range names {
		found := false
		d, err := o.Parent(name, format, format, func(dev lun.Device, o Options) (Disk, error) {
			found = true
			return own(dev, o)
		})
		switch {
		case err == nil:
			return d, name, nil
		case found || !errors.Is(err, ErrOtherFile):
			return nil, "", fmt.Errorf("%s: %w", format, err)
		}
		refused = append(refused, err)
	}
	return nil, "", fmt.Errorf("%s: open the parent: %w", format, errors.Join(refused...))
}

// Inherited are a parent's warnings, as its child passes them on.
func Inherited(name string, parent Disk) []error {
	var out []error
	for _, w := range parent.Info().Warnings {
		out = append(out, fmt.Errorf("parent %.200q: %w", name, w))
	}
	return out
}

// owned is a disk that closes the device below it, too.
type owned struct {
	Disk
	dev lun.Device
}

func (o *owned) Close() error { return errors.Join(o.Disk.Close(), Close(o.dev)) }

// Close closes a device that a resolver returned, if it can be closed.
func Close(d lun.Device) error {
	if c, ok := d.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Chain lists p and its parents, as Info.Parents of p's child, whose header
// calls p name.
func Chain(name string, p Disk) []Layer {
	i := p.Info()
	return append([]Layer{{Name: name, Format: i.Format, Size: i.Size}}, i.Parents...)
}
