#include "array.hpp"

#include <stdexcept>

namespace thrifty {

namespace {

std::string name_of(nb::dlpack::dtype dtype) {
  const auto code = (nb::dlpack::dtype_code)dtype.code;
  const char* kind = code == nb::dlpack::dtype_code::Float ? "float" : code == nb::dlpack::dtype_code::Int ? "int" : "uint";
  return kind + std::to_string(dtype.bits);
}

std::string name_of(std::span<const int64_t> shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + (shape[i] == kAny ? "any" : std::to_string(shape[i]));
  return text + (shape.size() == 1 ? ",)" : ")");
}

[[noreturn]] void refuse(nb::handle given, const Expected& expected, const char* why) {
  std::string found;
  if (nb::hasattr(given, "dtype") && nb::hasattr(given, "shape")) found = std::string(nb::str(given.attr("dtype")).c_str()) + " " + nb::str(given.attr("shape")).c_str();
  else found = std::string("of type ") + nb::str(given.type().attr("__name__")).c_str();
  throw std::invalid_argument(std::string(expected.name) + " is " + found + why + ", expected " + name_of(expected.dtype) + " " + name_of(expected.shape));
}

template <class A> ArrayView<void> checked(const A& given, nb::handle object, const Expected& expected) {
  bool right = given.dtype() == expected.dtype && given.ndim() == expected.shape.size();
  for (size_t i = 0; right && i < expected.shape.size(); i++) right = expected.shape[i] == kAny || (int64_t)given.shape(i) == expected.shape[i];
  if (!right) refuse(object, expected, "");
  static char nothing[64];
  ArrayView<void> view{given.size() ? (void*)given.data() : nothing};
  if ((uintptr_t)view.data % (given.dtype().bits / 8)) refuse(object, expected, ", not aligned");
  int64_t step = 1;
  for (size_t i = given.ndim(); i-- > 0; step *= (int64_t)given.shape(i)) {
    const bool free = given.shape(i) <= 1 || given.size() == 0 || (expected.rows_apart && i == 0);
    if (!free && given.stride(i) != step) refuse(object, expected, ", not contiguous");
    view.shape[i] = (int64_t)given.shape(i);
    if (i == 0) view.stride = given.shape(0) > 1 ? given.stride(0) : step;
  }
  return view;
}

}  // namespace

ArrayView<void> check_array(nb::handle given, const Expected& expected) {
  nb::ndarray<nb::ro, nb::device::cpu> read;
  if (!expected.writable) {
    if (nb::try_cast(given, read, false)) return checked(read, given, expected);
    refuse(given, expected, "");
  }
  nb::ndarray<nb::device::cpu> written;
  if (nb::try_cast(given, written, false)) return checked(written, given, expected);
  refuse(given, expected, nb::try_cast(given, read, false) ? ", read-only" : "");
}

}  // namespace thrifty
