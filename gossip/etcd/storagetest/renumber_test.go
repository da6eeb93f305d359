package storagetest

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// renumbered is what sits in a client to make revisions count as etcd's do:
// the n-th one seen is shown as n, and n is sent as the n-th. Nothing else of a
// message changes. Two tests of the suite add one to a revision to get the
// next; with this they can tell whether anything but that is different.
type renumbered struct {
	mu   sync.Mutex
	seen []int64 // ascending; the revision shown as n is at n-1
}

func (r *renumbered) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if err := invoker(ctx, method, r.request(req), reply, cc, opts...); err != nil {
				return err
			}
			r.response(reply)
			return nil
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := streamer(ctx, desc, cc, method, opts...)
			return &renumberedStream{stream, r}, err
		}),
	}
}

type renumberedStream struct {
	grpc.ClientStream
	r *renumbered
}

func (s *renumberedStream) SendMsg(m any) error { return s.ClientStream.SendMsg(s.r.request(m)) }

func (s *renumberedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	s.r.response(m)
	return nil
}

// request returns a copy of m with real revisions. One that is not there yet
// becomes one that is far in the future.
func (r *renumbered) request(m any) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := proto.Clone(m.(proto.Message))
	eachRevision(out.ProtoReflect(), func(n int64) int64 {
		switch last := int64(len(r.seen)); {
		case n <= 0:
			return n
		case n <= last:
			return r.seen[n-1]
		case last == 0:
			return n
		case n == last+1:
			return r.seen[last-1] + 1 // where a watch for what comes next begins
		default:
			return r.seen[last-1] + (n-last)<<40
		}
	})
	return out
}

// response numbers the revisions of m, those never seen before in their order.
func (r *renumbered) response(m any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	message := m.(proto.Message).ProtoReflect()
	var all []int64
	eachRevision(message, func(revision int64) int64 {
		all = append(all, revision)
		return revision
	})
	slices.Sort(all)
	for _, revision := range all {
		if revision > 0 && (len(r.seen) == 0 || revision > r.seen[len(r.seen)-1]) {
			r.seen = append(r.seen, revision)
		}
	}
	eachRevision(message, func(revision int64) int64 {
		if revision <= 0 {
			return revision
		}
		i, _ := slices.BinarySearch(r.seen, revision)
		return int64(i) + 1
	})
}

// eachRevision replaces every revision in a message.
func eachRevision(m protoreflect.Message, replace func(int64) int64) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsList() && field.Message() != nil:
			for i := range v.List().Len() {
				eachRevision(v.List().Get(i).Message(), replace)
			}
		case field.Message() != nil:
			eachRevision(v.Message(), replace)
		case isRevision(field.Name()):
			m.Set(field, protoreflect.ValueOfInt64(replace(v.Int())))
		}
		return true
	})
}

func isRevision(field protoreflect.Name) bool {
	switch field {
	case "revision", "mod_revision", "create_revision", "start_revision", "compact_revision",
		"min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision":
		return true
	}
	return false
}
