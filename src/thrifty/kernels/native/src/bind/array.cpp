#include "bind/array.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace thrifty {

namespace {

// What an object lets others see of its memory, by Python's buffer protocol: of all ways the cheapest.
class Buffer {
 public:
  Buffer(nb::handle object, bool writable) {
    held_ =
        PyObject_GetBuffer(object.ptr(), &view_, PyBUF_FORMAT | PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0)) == 0;
    if (!held_) PyErr_Clear();
  }
  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  explicit operator bool() const { return held_; }
  const Py_buffer* operator->() const { return &view_; }

 private:
  Py_buffer view_;
  bool held_;
};

std::string text_of(nb::handle object, const char* attribute) {
  return nb::str(nb::object(object.attr(attribute))).c_str();
}

std::string text_of(std::span<const int64_t> shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); i++)
    text += (i ? ", " : "") + (shape[i] == kAny ? "any" : std::to_string(shape[i]));
  return text + (shape.size() == 1 ? ",)" : ")");
}

[[noreturn]] void refuse(nb::handle given, const Expected& expected, const char* why) {
  const bool array = nb::hasattr(given, "dtype") && nb::hasattr(given, "shape");
  const std::string found =
      array ? text_of(given, "dtype") + " " + text_of(given, "shape") : "of type " + text_of(given.type(), "__name__");
  throw std::invalid_argument(std::string(expected.name) + " is " + found + why + ", expected " + expected.type.name +
                              " " + text_of(expected.shape));
}

bool fits(const Buffer& buffer, const Expected& expected) {
  const char* format = buffer->format;
  if (format[0] == '=' || format[0] == '^' || format[0] == '@')
    format++;  // native order; NumPy marks what is not aligned
  if (!format[0] || format[1] || !std::strchr(expected.type.letters, format[0]) ||
      buffer->itemsize != expected.type.bytes)
    return false;
  if (buffer->ndim != (int)expected.shape.size()) return false;
  for (int i = 0; i < buffer->ndim; i++)
    if (expected.shape[(size_t)i] != kAny && expected.shape[(size_t)i] != buffer->shape[i]) return false;
  return true;
}

}  // namespace

int axes(nb::handle given) {
  const Buffer buffer(given, false);
  return buffer ? buffer->ndim : 0;
}

void refuse_type(nb::handle given, const char* name, const char* expected) {
  throw std::invalid_argument(std::string(name) + " is " + std::string(nb::repr(given).c_str()).substr(0, 80) +
                              ", expected " + expected);
}

ArrayView<void> check_array(nb::handle given, const Expected& expected) {
  const Buffer buffer(given, expected.writable);
  if (!buffer) refuse(given, expected, expected.writable && Buffer(given, false) ? ", read-only" : "");
  if (!fits(buffer, expected)) refuse(given, expected, "");
  if ((uintptr_t)buffer->buf % (uintptr_t)expected.type.bytes) refuse(given, expected, ", not aligned");
  static char nothing[64];
  ArrayView<void> view{buffer->len ? buffer->buf : nothing, 0, {}};
  int64_t step = expected.type.bytes;
  for (int i = buffer->ndim - 1; i >= 0; step *= buffer->shape[i--]) {
    const bool any_stride = buffer->shape[i] <= 1 || buffer->len == 0 ||
                            (i == 0 && expected.rows_apart && buffer->strides[0] % expected.type.bytes == 0);
    if (!any_stride && buffer->strides[i] != step) refuse(given, expected, ", not contiguous");
    view.shape[i] = buffer->shape[i];
    if (i == 0) view.stride = (buffer->shape[0] > 1 ? buffer->strides[0] : step) / expected.type.bytes;
  }
  return view;
}

}  // namespace thrifty
