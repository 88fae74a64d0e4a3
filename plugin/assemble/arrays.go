package assemble

import (
	"context"
	"fmt"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/arrays/lvm"
	"github.com/cleave-san/cleave/arrays/program"
	"github.com/cleave-san/cleave/orchestrator/engine"
)

// Types of arrays.
const (
	typeEmbedded = "embedded" // that of `cleave array`
	typeCinder   = "cinder"   // volumes of OpenStack
	typeLVM      = "lvm"      // a volume group of this host
	typeProgram  = "program"  // anybody's, behind a program that speaks for it
	typeRBD      = "rbd"      // images of Ceph
)

// openArrays makes the arrays of a configuration, and the publisher of
// recovered views: the target of the first embedded array. Nothing is connected;
// programs are asked what they can do. The caller closes what closers has.
func openArrays(ctx context.Context, cs []ArrayConfig, tracer trace.Tracer, log *slog.Logger) (out []*arrays.Array, pub engine.Publisher, closers []func() error, err error) {
	pub = noPublisher{}
	for i, c := range cs {
		if c.Type == typeEmbedded {
			if _, none := pub.(noPublisher); none {
				pub = publisher{remote.New(c.Socket)}
			}
		}
		a, end, err := openArray(ctx, i, c, tracer, log)
		if err != nil {
			return nil, nil, closers, err
		}
		if end != nil {
			closers = append(closers, end)
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, nil, closers, usage("arrays: there is none, so no VM's disk can be split")
	}
	return out, pub, closers, nil
}

// openArray makes the i-th of the arrays. end is nil where nothing is to be closed.
func openArray(ctx context.Context, i int, c ArrayConfig, tracer trace.Tracer, log *slog.Logger) (a *arrays.Array, end func() error, err error) {
	var d driver.Driver
	o := arrays.Options{Tracer: tracer}
	switch c.Type {
	case typeEmbedded:
		d = remote.New(c.Socket)
	case typeCinder:
		v, err := openCinder(c)
		if err != nil {
			return nil, nil, fmt.Errorf("arrays[%d]: %w", i, err)
		}
		d, o.Without = v, v.Without()
	case typeRBD:
		v, err := openRBD(c)
		if err != nil {
			return nil, nil, fmt.Errorf("arrays[%d]: %w", i, err)
		}
		d = lentRBD{v, c}
	case typeLVM:
		v, err := openLVM(c, log)
		if err != nil {
			return nil, nil, fmt.Errorf("arrays[%d]: %w", i, err)
		}
		d, o.Without = v, v.Without()
	case typeProgram:
		p, err := openProgram(ctx, c, log)
		if err != nil {
			return nil, nil, fmt.Errorf("arrays[%d]: %w", i, err)
		}
		d, o.Without, end = p, p.Without(), p.Close
	default:
		return nil, nil, unknownType(i, c)
	}
	return arrays.New(c.Name, d, o), end, nil
}

func unknownType(i int, c ArrayConfig) error {
	return usage("arrays[%d].type: %q: want %s, %s, %s, %s or %s", i, c.Type, typeEmbedded, typeCinder, typeLVM, typeProgram, typeRBD)
}

func openLVM(c ArrayConfig, log *slog.Logger) (*lvm.Driver, error) {
	return lvm.New(lvm.Options{Group: c.Group, Method: lvm.Method(c.Method), Devices: c.Devices, Room: c.Room, Log: log.With("array", c.Name)})
}

func openProgram(ctx context.Context, c ArrayConfig, log *slog.Logger) (*program.Driver, error) {
	return program.Open(ctx, program.Options{Command: c.Command, Environment: c.Environment, Log: log.With("array", c.Name)})
}

// publisher serves recovered views by the data plane's target.
type publisher struct{ client *remote.Client }

func (p publisher) Publish(ctx context.Context, x engine.Publication) (driver.Path, error) {
	return p.client.Publish(ctx, remote.Publication{
		Name: x.Name, Socket: x.Socket, Export: x.Export, Identity: x.Identity, Initiators: x.Initiators, Writable: x.Writable,
	})
}

func (p publisher) Withdraw(ctx context.Context, name string) error {
	return p.client.Withdraw(ctx, name)
}

// noPublisher is for a configuration without a target of ours: views are
// reached by their sockets on this host.
type noPublisher struct{}

func (noPublisher) Publish(context.Context, engine.Publication) (driver.Path, error) {
	return driver.Path{}, driver.Errorf(driver.NotSupported, "no array of type %s is configured, whose target could serve recovered views", typeEmbedded)
}

func (noPublisher) Withdraw(context.Context, string) error { return nil }
